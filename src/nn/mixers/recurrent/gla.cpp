// Gated linear attention (GLA, 2312.06635).
//   S_t = Diag(exp(g_t)) S_(t-1) + k_t^T v_t,   o_t = q_t S_t / sqrt(K),   g = log_sigmoid((x W1) W2 + b) / 16
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
        dim_(args.dim),
        q_(dim_, dim_ / 2, rng["q"], {.std = args.std}),
        k_(dim_, dim_ / 2, rng["k"], {.std = args.std}),
        v_(dim_, dim_, rng["v"], {.std = args.std}),
        decay_down_(dim_, o.gate_rank, rng["decay_down"], {.std = args.std}),
        decay_up_(o.gate_rank, dim_ / 2, rng["decay_up"], {.has_bias = true, .std = args.std}),
        gate_(dim_, dim_, rng["gate"], {.std = args.std}),
        head_norm_(dim_ / heads_, {.eps = 1e-5}),
        out_(dim_, dim_, rng["out"], {.std = args.out_std}) {
    name_parts({{"q", q_}, {"k", k_}, {"v", v_}, {"decay_down", decay_down_}, {"decay_up", decay_up_}});
    name_parts({{"gate", gate_}, {"head_norm", head_norm_}, {"out", out_}});
  }

  Var forward(const Var& x_BTD, Tokens& tokens) override {
    Scope scope(name());
    auto split = [&](const Var& x) { return split_heads(x, heads_); };
    Var g = floored(log_sigmoid(wide_linear(decay_down_(x_BTD), decay_up_)) * (1.0 / kRoot));
    Var o = tokens.recur({split(q_(x_BTD)), split(k_(x_BTD)), split(v_(x_BTD)), split(g)},
                         {.scale = inverse_root(dim_ / 2 / heads_)});
    Var y_BTHV = head_norm_(o) * split(silu(gate_(x_BTD)));
    return out_(merge_heads(tokens.heads(y_BTHV)));
  }

  double flops_per_token(double) const override { return recurrence_flops(heads_, dim_ / 2 / heads_, dim_ / heads_); }

 private:
  static constexpr double kRoot = 16;  // of the gate

  int64_t heads_, dim_;
  Linear q_, k_, v_, decay_down_, decay_up_, gate_;
  Norm head_norm_;
  Linear out_;
};

}  // namespace

std::unique_ptr<Mixer> GlaOptions::operator()(const MixerArgs& args, Rng rng) const {
  WEFT_CHECK(heads >= 1 && gate_rank >= 1 && args.dim % (2 * heads) == 0,
             str("gla: ", heads, " heads, gate_rank ", gate_rank, " for dim ", args.dim),
             "dim must be a multiple of 2 heads, gate_rank 1 or more");
  return std::make_unique<Gla>(*this, args, rng);
}

}  // namespace weft
