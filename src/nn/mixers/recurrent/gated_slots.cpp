// Gated slot attention (GSA, 2409.07146): softmax attention over M slots per head, of which each token overwrites a gated share.
//   Z_t = Z_(t-1) Diag(f_t) + k_t^T (1 - f_t),   p_t = softmax(q_t Z_t),   f = sigmoid(x Wf)^(1/8)
//   Y_t = Diag(f_t) Y_(t-1) + (1 - f_t)^T v_t,   o_t = p_t Y_t,   y = RMSNorm(silu(o)) Wo
// of q, k, v = silu(x W), or silu(conv(x W)). Each of the G heads of k, v and f serves H / G heads of queries, whose states are kept one by one.
// B batch, T tokens, D model width, H heads, G key/value heads, K head width, M slots.
#include "src/nn/mixers/recurrent/parts.h"
#include "weft/core/error.h"
#include "weft/nn/mixers/projected.h"
#include "weft/nn/mixers/recurrent.h"

namespace weft {

namespace {

using namespace recurrent;

class GatedSlots final : public Mixer {
 public:
  GatedSlots(const GatedSlotsOptions& o, const MixerArgs& args, Rng rng)
      : s_(completed("gated_slots", {o.heads, o.kv_heads, 0}, unrotated(args))),
        slots_(o.slots),
        q_(args.dim, args.dim, rng["q"], {.std = args.std}),
        k_(args.dim, s_.kv_heads * s_.head_dim, rng["k"], {.std = args.std}),
        v_(args.dim, s_.kv_heads * s_.head_dim, rng["v"], {.std = args.std}),
        q_conv_(args.dim, o.kernel, rng["q_conv"], {.has_silu = false}),
        k_conv_(s_.kv_heads * s_.head_dim, o.kernel, rng["k_conv"], {.has_silu = false}),
        v_conv_(s_.kv_heads * s_.head_dim, o.kernel, rng["v_conv"], {.has_silu = false}),
        decay_(args.dim, s_.kv_heads * o.slots, rng["decay"], {.std = args.std}),
        norm_(args.dim, {.eps = 1e-5}),
        out_(args.dim, args.dim, rng["out"], {.std = args.out_std}) {
    name_parts({{"q", q_}, {"k", k_}, {"v", v_}, {"q_conv", q_conv_}, {"k_conv", k_conv_}, {"v_conv", v_conv_}});
    name_parts({{"decay", decay_}, {"norm", norm_}, {"out", out_}});
  }

  Var forward(const Var& x_BTD, Tokens& tokens) override {
    Scope scope(name());
    constexpr double kRoot = 8;  // of the gate
    auto made = [&](const Linear& projection, const ShortConv& conv, int64_t heads) {
      return per_query_head(split_heads(silu(conv(projection(x_BTD), tokens)), heads), s_.heads);
    };
    Var f_BTGM = split_heads(floored(log_sigmoid(wide_linear(x_BTD, decay_)) * (1.0 / kRoot)), s_.kv_heads);
    Var f_BTHM = per_query_head(f_BTGM, s_.heads);
    Var write_BTGM = cast(-elu(f_BTGM), x_BTD.dtype());  // 1 - f, as a difference 0 where f is near 1
    Var write_BTHM = per_query_head(write_BTGM, s_.heads);
    Var q_BTHK = made(q_, q_conv_, s_.heads), k_BTHK = made(k_, k_conv_, s_.kv_heads);
    Var choice_BTHM = softmax(tokens.recur({q_BTHK, k_BTHK, write_BTHM, f_BTHM}, {.side = ops::DecaySide::value}));
    Var o = tokens.recur({choice_BTHM, write_BTHM, made(v_, v_conv_, s_.kv_heads), f_BTHM});
    return out_(norm_(silu(merge_heads(tokens.heads(o)))));
  }

  double flops_per_token(double) const override { return 2 * recurrence_flops(s_.heads, s_.head_dim, slots_); }

 private:
  HeadSizes s_;
  int64_t slots_;
  Linear q_, k_, v_;
  ShortConv q_conv_, k_conv_, v_conv_;
  Linear decay_;
  Norm norm_;
  Linear out_;
};

}  // namespace

std::unique_ptr<Mixer> GatedSlotsOptions::operator()(const MixerArgs& args, Rng rng) const {
  check_heads("gated_slots", heads, args.dim);
  check_kernel("gated_slots", kernel);
  WEFT_CHECK(slots >= 1, str("gated_slots: slots ", slots), "use 1 or more");
  return std::make_unique<GatedSlots>(*this, args, rng);
}

}  // namespace weft
