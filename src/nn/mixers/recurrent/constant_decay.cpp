// Mixers whose heads forget at a constant rate: RetNet (2307.08621) and TransNormerLLM with Lightning Attention (2307.14995, 2405.17381).
//   S_t = a_h S_(t-1) + k_t^T v_t,   o_t = q_t S_t
// With a kernel, q, k and v are convolved behind their projections.
// B batch, T tokens, D model width, H heads, K key width, V value width.
#include <cmath>

#include "src/nn/mixers/recurrent/parts.h"
#include "weft/core/error.h"
#include "weft/nn/mixers/recurrent.h"

namespace weft {

namespace {

using namespace recurrent;

// y = (RMSNorm(o / sqrt(K)) * silu(x Wg)) Wo, of rotated q and k; V = 2 K. Behind a convolution stands silu, before the rotation, which is a part
// of the mixer, whatever positions the model has.
class Retnet final : public Mixer {
 public:
  Retnet(const RetnetOptions& o, const MixerArgs& args, Rng rng)
      : heads_(o.heads),
        width_(args.dim / o.heads),
        q_(args.dim, args.dim, rng["q"], {.std = args.std}),
        k_(args.dim, args.dim, rng["k"], {.std = args.std}),
        v_(args.dim, 2 * args.dim, rng["v"], {.std = args.std}),
        q_conv_(args.dim, o.kernel, rng["q_conv"]),
        k_conv_(args.dim, o.kernel, rng["k_conv"]),
        v_conv_(2 * args.dim, o.kernel, rng["v_conv"]),
        gate_(args.dim, 2 * args.dim, rng["gate"], {.std = args.std}),
        head_norm_(2 * width_, {.eps = 1e-5}),
        out_(2 * args.dim, args.dim, rng["out"], {.std = args.out_std}) {
    name_parts({{"q", q_}, {"k", k_}, {"v", v_}, {"q_conv", q_conv_}, {"k_conv", k_conv_}, {"v_conv", v_conv_}});
    name_parts({{"gate", gate_}, {"head_norm", head_norm_}, {"out", out_}});
    for (int64_t h = 0; h < heads_; ++h) log_decays_.push_back(std::log1p(-std::exp2(-5 - static_cast<double>(h))));
  }

  Var forward(const Var& x_BTD, Tokens& tokens) override {
    Scope scope(name());
    const ops::RotaryTable& table = tokens.rotary_table(width_, {.base = 10000, .fraction = 1});
    auto made = [&](const Linear& projection, const ShortConv& conv) {
      return split_heads(conv(projection(x_BTD), tokens), heads_);
    };
    Var o = tokens.recur({rotary(made(q_, q_conv_), table), rotary(made(k_, k_conv_), table), made(v_, v_conv_),
                          vector_like(x_BTD, log_decays_)},
                         {.scale = inverse_root(width_)});
    Var y_BTHV = head_norm_(o) * split_heads(silu(gate_(x_BTD)), heads_);
    return out_(merge_heads(tokens.heads(y_BTHV)));
  }

  double flops_per_token(double) const override { return recurrence_flops(heads_, width_, 2 * width_); }

 private:
  int64_t heads_, width_;
  Linear q_, k_, v_;
  ShortConv q_conv_, k_conv_, v_conv_;
  Linear gate_;
  Norm head_norm_;
  Linear out_;
  std::vector<double> log_decays_;
};

// y = (o / rms(o) * sigmoid((x W1) W2)) Wo of q, k, v = silu(x W), or silu(conv(x W)).
class Lightning final : public Mixer {
 public:
  Lightning(const LightningOptions& o, const MixerArgs& args, Rng rng)
      : heads_(o.heads),
        width_(args.dim / o.heads),
        eps_(args.norm_eps),
        q_(args.dim, args.dim, rng["q"], {.std = args.std}),
        k_(args.dim, args.dim, rng["k"], {.std = args.std}),
        v_(args.dim, args.dim, rng["v"], {.std = args.std}),
        q_conv_(args.dim, o.kernel, rng["q_conv"], {.has_silu = false}),
        k_conv_(args.dim, o.kernel, rng["k_conv"], {.has_silu = false}),
        v_conv_(args.dim, o.kernel, rng["v_conv"], {.has_silu = false}),
        gate_down_(args.dim, width_, rng["gate_down"], {.std = args.std}),
        gate_(width_, args.dim, rng["gate"], {.std = args.std}),
        out_(args.dim, args.dim, rng["out"], {.std = args.out_std}) {
    name_parts({{"q", q_}, {"k", k_}, {"v", v_}, {"q_conv", q_conv_}, {"k_conv", k_conv_}, {"v_conv", v_conv_}});
    name_parts({{"gate_down", gate_down_}, {"gate", gate_}, {"out", out_}});
    const auto H = static_cast<double>(heads_), L = static_cast<double>(args.layers),
               l = static_cast<double>(args.layer);
    for (int64_t head = 0; head < heads_; ++head) {
      const auto h = static_cast<double>(head);
      const double depth = args.layers > 1 ? l / (L - 1) : 0;
      log_decays_.push_back(o.decay == LightningDecay::slopes ? -std::exp2(-8 * (h + 1) / H) * (1 - depth + 1e-5)
                                                              : -8 * h / H * (1 - l / L));
    }
  }

  Var forward(const Var& x_BTD, Tokens& tokens) override {
    Scope scope(name());
    auto made = [&](const Linear& projection, const ShortConv& conv) {
      return split_heads(silu(conv(projection(x_BTD), tokens)), heads_);
    };
    Var o = tokens.recur({made(q_, q_conv_), made(k_, k_conv_), made(v_, v_conv_), vector_like(x_BTD, log_decays_)});
    return out_(rms_normed(merge_heads(tokens.heads(o)), eps_) * sigmoid(gate_(gate_down_(x_BTD))));
  }

  double flops_per_token(double) const override { return recurrence_flops(heads_, width_, width_); }

 private:
  int64_t heads_, width_;
  double eps_;
  Linear q_, k_, v_;
  ShortConv q_conv_, k_conv_, v_conv_;
  Linear gate_down_, gate_, out_;
  std::vector<double> log_decays_;
};

}  // namespace

std::unique_ptr<Mixer> RetnetOptions::operator()(const MixerArgs& args, Rng rng) const {
  check_heads("retnet", heads, args.dim);
  check_kernel("retnet", kernel);
  WEFT_CHECK(args.dim / heads % 2 == 0, str("retnet: heads of width ", args.dim / heads, " cannot be rotated"),
             "choose heads so that dim / heads is even");
  return std::make_unique<Retnet>(*this, args, rng);
}

std::unique_ptr<Mixer> LightningOptions::operator()(const MixerArgs& args, Rng rng) const {
  check_heads("lightning", heads, args.dim);
  check_kernel("lightning", kernel);
  return std::make_unique<Lightning>(*this, args, rng);
}

}  // namespace weft
