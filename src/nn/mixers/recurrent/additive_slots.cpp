// Mixers that normalise keys over positions: LightNet (2405.21022), causal Efficient Attention (1812.01243), Agent Attention (2312.08874) and
// FLARE (2508.12594). Each slot m has a logit x_tm per token, and reads softmax over positions:
//   o_t = sum_m q'_tm sum_j exp(x_jm - z_tm) v_j,   z_tm = log sum_(j <= t) exp(x_jm)
// which is the recurrence with keys exp(x_t - z_t) and decays exp(z_(t-1) - z_t).
//   lightnet    x = k, q' = silu(x Wq) / sqrt(K), the output RMSNorm(o) * silu((x G1) G2); with a kernel q, k and v are convolved first
//   efficient   x = k, q' = softmax over the channels of q
//   agent       x = a k / sqrt(K), q' = softmax_m(a q / sqrt(K)) with learned agents a, and a convolution of v is added to o
//   flare       x = a k, q' = softmax_m(a k)
// B batch, T tokens, D model width, H heads, K head width, M slots.
#include <algorithm>

#include "src/nn/mixers/recurrent/parts.h"
#include "weft/core/error.h"
#include "weft/nn/mixers/recurrent.h"

namespace weft {

namespace {

using namespace recurrent;

struct Slots {
  Var keys, log_decay;
};
// Sums of exponentials are f64, so that differences of their logs are exact enough.
Slots additive(const Var& logits_BTHM, DType dtype, Tokens& tokens) {
  Var x = cast(logits_BTHM, kF64), z = log(tokens.scan(summed_exp("additive_slots: a logit of a slot", x)));
  // Before the first token of a document there is no state: its decay is without effect.
  Var growth = clamp_max(tokens.shift(z, 1) - z, 0);
  return {cast(exp(x - z), dtype), cast(growth, wide(logits_BTHM))};
}

class AdditiveSlots final : public Mixer {
 public:
  AdditiveSlots(const AdditiveSlotsOptions& o, const MixerArgs& args, Rng rng)
      : o_(o),
        width_(args.dim / o.heads),
        k_(args.dim, args.dim, rng["k"], {.std = args.std}),
        v_(args.dim, args.dim, rng["v"], {.std = args.std}),
        q_conv_(args.dim, o.kernel, rng["q_conv"], {.has_silu = false}),
        k_conv_(args.dim, o.kernel, rng["k_conv"], {.has_silu = false}),
        v_conv_(args.dim, is_agent() ? 4 : o.kernel, rng["v_conv"], {.has_silu = false}),
        out_(args.dim, args.dim, rng["out"], {.std = args.out_std}) {
    name_parts({{"k", k_}, {"v", v_}, {"out", out_}});
    auto linear = [&](const char* what, std::unique_ptr<Linear>& to, int64_t in, int64_t out) {
      to = std::make_unique<Linear>(in, out, rng[what], LinearOptions{.std = args.std});
      name_part({what, *to});
    };
    if (o.kind != SlotKind::flare) linear("q", q_, args.dim, args.dim);
    if (o.kind == SlotKind::lightnet) {
      linear("gate_down", gate_down_, args.dim, o.gate_rank);
      linear("gate", gate_, o.gate_rank, args.dim);
      norm_ = std::make_unique<Norm>(args.dim, NormOptions{.eps = 1e-5});
      name_part({"norm", *norm_});
    }
    if (has_agents()) {
      agents_ = std::make_unique<Param>(normal_init({o.heads, o.slots, width_}, rng["agents"], args.std));
      name_part({"agents", *agents_});
    }
    name_parts({{"q_conv", q_conv_}, {"k_conv", k_conv_}, {"v_conv", v_conv_}});
  }

  Var forward(const Var& x_BTD, Tokens& tokens) override {
    Scope scope(name());
    Var k_BTD = k_conv_(k_(x_BTD), tokens), v_BTD = v_(x_BTD), convolved = v_conv_(v_BTD, tokens);
    Var logits = of_slots(split_heads(k_BTD, o_.heads));
    auto [keys, log_decay] = additive(logits, x_BTD.dtype(), tokens);
    Var v = split_heads(is_agent() ? v_BTD : convolved, o_.heads);
    Var o = tokens.recur({choices(x_BTD, logits, tokens), keys, v, log_decay});
    if (is_agent()) o = o + split_heads(convolved, o_.heads);
    Var y_BTD = merge_heads(tokens.heads(o));
    if (norm_) y_BTD = (*norm_)(y_BTD)*silu((*gate_)((*gate_down_)(x_BTD)));
    return out_(y_BTD);
  }

  double flops_per_token(double) const override {
    const int64_t slots = has_agents() ? o_.slots : width_;
    const double products = has_agents() ? (o_.kind == SlotKind::agent ? 12.0 : 6.0) : 0;  // with the agents
    return recurrence_flops(o_.heads, slots, width_) + products * static_cast<double>(o_.heads * slots * width_);
  }

 private:
  bool is_agent() const { return o_.kind == SlotKind::agent; }
  bool has_agents() const { return o_.kind == SlotKind::agent || o_.kind == SlotKind::flare; }

  // Logits of the slots [B, T, H, M] of keys or queries [B, T, H, K].
  Var of_slots(const Var& x_BTHK) const {
    if (!has_agents()) return x_BTHK;
    const DType dtype = wide(x_BTHK);
    Var of_heads = matmul(transpose(x_BTHK, 1, 2), *agents_, {.transpose_b = true, .out = dtype});
    return transpose(of_heads, 1, 2) * (o_.kind == SlotKind::agent ? inverse_root(width_) : 1.0);
  }

  // What a token reads of each slot.
  Var choices(const Var& x_BTD, const Var& key_logits, Tokens& tokens) const {
    if (o_.kind == SlotKind::flare) return cast(softmax(key_logits), x_BTD.dtype());
    Var q = split_heads(q_conv_((*q_)(x_BTD), tokens), o_.heads);
    if (o_.kind == SlotKind::lightnet) return silu(q) * inverse_root(width_);
    return cast(softmax(of_slots(q)), x_BTD.dtype());
  }

  AdditiveSlotsOptions o_;
  int64_t width_;
  Linear k_, v_;
  ShortConv q_conv_, k_conv_, v_conv_;
  Linear out_;
  std::unique_ptr<Linear> q_, gate_down_, gate_;
  std::unique_ptr<Norm> norm_;
  std::unique_ptr<Param> agents_;
};

}  // namespace

std::unique_ptr<Mixer> AdditiveSlotsOptions::operator()(const MixerArgs& args, Rng rng) const {
  check_heads("additive_slots", heads, args.dim);
  const bool has_agents = kind == SlotKind::agent || kind == SlotKind::flare;
  WEFT_CHECK(has_agents || slots == 0,
             str("additive_slots: slots ", slots, ", and the channels of the keys are the slots"),
             "leave slots out, or use the kinds agent or flare");
  WEFT_CHECK(kind == SlotKind::lightnet || gate_rank == 0,
             str("additive_slots: gate_rank ", gate_rank, " of a kind without a gate"),
             "leave gate_rank out, or use the kind lightnet");
  check_kernel("additive_slots", kernel);
  WEFT_CHECK(kind == SlotKind::lightnet || kernel == 0,
             str("additive_slots: kernel ", kernel, " of a kind without convolutions of q, k and v"),
             "leave kernel out, or use the kind lightnet");
  AdditiveSlotsOptions o = *this;
  if (o.slots == 0) o.slots = 32;
  if (o.gate_rank == 0) o.gate_rank = std::min<int64_t>(128, args.dim);
  WEFT_CHECK(o.slots >= 1 && o.gate_rank >= 1, str("additive_slots: slots ", slots, ", gate_rank ", gate_rank),
             "use 0 (the default) or more");
  return std::make_unique<AdditiveSlots>(o, args, rng);
}

}  // namespace weft
