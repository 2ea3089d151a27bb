// Gated linear attention (GLA, 2312.06635).
//   S_t = Diag(exp(g_t)) S_(t-1) + k_t^T v_t,   o_t = q_t S_t / sqrt(K),   g = max(log_sigmoid((x W1) W2 + b) / 16, clamp_min)
// of q, k, v = x W, or silu(conv(x W)),
//   y = (RMSNorm(o) * silu(x Wg)) Wo
// B batch, T tokens, D model width, H heads, K = D / 2H key width, V = D / H value width.
#include "src/nn/mixers/recurrent/parts.h"
#include "weft/core/error.h"
#include "weft/nn/mixers/recurrent.h"

namespace weft {

namespace {

using namespace recurrent;

class Gla final : public Mixer {
 public:
  Gla(const GlaOptions& o, const MixerArgs& args, Rng rng)
      : heads_(o.heads),
        clamp_min_(o.clamp_min),
        dim_(args.dim),
        q_(dim_, dim_ / 2, rng["q"], {.std = args.std}),
        k_(dim_, dim_ / 2, rng["k"], {.std = args.std}),
        v_(dim_, dim_, rng["v"], {.std = args.std}),
        q_conv_(dim_ / 2, o.kernel, rng["q_conv"]),
        k_conv_(dim_ / 2, o.kernel, rng["k_conv"]),
        v_conv_(dim_, o.kernel, rng["v_conv"]),
        decay_down_(dim_, o.gate_rank, rng["decay_down"], {.std = args.std}),
        decay_up_(o.gate_rank, dim_ / 2, rng["decay_up"], {.has_bias = true, .std = args.std}),
        gate_(dim_, dim_, rng["gate"], {.std = args.std}),
        head_norm_(dim_ / heads_, {.eps = 1e-5}),
        out_(dim_, dim_, rng["out"], {.std = args.out_std}) {
    name_parts({{"q", q_}, {"k", k_}, {"v", v_}, {"q_conv", q_conv_}, {"k_conv", k_conv_}, {"v_conv", v_conv_}});
    name_parts({{"decay_down", decay_down_}, {"decay_up", decay_up_}});
    name_parts({{"gate", gate_}, {"head_norm", head_norm_}, {"out", out_}});
  }

  Var forward(const Var& x_BTD, Tokens& tokens) override {
    Scope scope(name());
    auto split = [&](const Var& x) { return split_heads(x, heads_); };
    auto made = [&](const Linear& projection, const ShortConv& conv) { return split(conv(projection(x_BTD), tokens)); };
    Var g = clamp_min(log_sigmoid(wide_linear(decay_down_(x_BTD), decay_up_)) * (1.0 / kRoot), clamp_min_);
    Var o = tokens.recur({made(q_, q_conv_), made(k_, k_conv_), made(v_, v_conv_), split(g)},
                         {.scale = inverse_root(dim_ / 2 / heads_)});
    Var y_BTHV = head_norm_(o) * split(silu(gate_(x_BTD)));
    return out_(merge_heads(tokens.heads(y_BTHV)));
  }

  double flops_per_token(double) const override { return recurrence_flops(heads_, dim_ / 2 / heads_, dim_ / heads_); }

 private:
  static constexpr double kRoot = 16;  // of the gate

  int64_t heads_;
  double clamp_min_;
  int64_t dim_;
  Linear q_, k_, v_;
  ShortConv q_conv_, k_conv_, v_conv_;
  Linear decay_down_, decay_up_, gate_;
  Norm head_norm_;
  Linear out_;
};

}  // namespace

std::unique_ptr<Mixer> GlaOptions::operator()(const MixerArgs& args, Rng rng) const {
  WEFT_CHECK(heads >= 1 && gate_rank >= 1 && args.dim % (2 * heads) == 0,
             str("gla: ", heads, " heads, gate_rank ", gate_rank, " for dim ", args.dim),
             "dim must be a multiple of 2 heads, gate_rank 1 or more");
  check_kernel("gla", kernel);
  WEFT_CHECK(clamp_min >= -1e4 && clamp_min < 0, str("gla: clamp_min ", clamp_min),
             "use a log of a decay: below 0, and -1e4 (a decay of 0) or more");
  return std::make_unique<Gla>(*this, args, rng);
}

}  // namespace weft
