// Gated slot attention (GSA, 2409.07146): softmax attention over M slots per head, of which each token overwrites a gated share.
//   Z_t = Z_(t-1) Diag(f_t) + k_t^T (1 - f_t),   p_t = softmax(q_t Z_t),   f = sigmoid(x Wf)^(1/8)
//   Y_t = Diag(f_t) Y_(t-1) + (1 - f_t)^T v_t,   o_t = p_t Y_t,   y = RMSNorm(silu(o)) Wo
// of q, k, v = silu(x W). B batch, T tokens, D model width, H heads, K head width, M slots.
#include "src/nn/mixers/recurrent/parts.h"
#include "weft/core/error.h"
#include "weft/nn/mixers/recurrent.h"

namespace weft {

namespace {

using namespace recurrent;

class GatedSlots final : public Mixer {
 public:
  GatedSlots(const GatedSlotsOptions& o, const MixerArgs& args, Rng rng)
      : o_(o),
        dim_(args.dim),
        q_(dim_, dim_, rng["q"], {.std = args.std}),
        k_(dim_, dim_, rng["k"], {.std = args.std}),
        v_(dim_, dim_, rng["v"], {.std = args.std}),
        decay_(dim_, o.heads * o.slots, rng["decay"], {.std = args.std}),
        norm_(dim_, {.eps = 1e-5}),
        out_(dim_, dim_, rng["out"], {.std = args.out_std}) {
    name_parts({{"q", q_}, {"k", k_}, {"v", v_}, {"decay", decay_}, {"norm", norm_}, {"out", out_}});
  }

  Var forward(const Var& x_BTD, Tokens& tokens) override {
    Scope scope(name());
    constexpr double kRoot = 8;  // of the gate
    auto made = [&](const Linear& projection) { return split_heads(silu(projection(x_BTD)), o_.heads); };
    Var f_BTHM = split_heads(floored(log_sigmoid(wide_linear(x_BTD, decay_)) * (1.0 / kRoot)), o_.heads);
    Var write_BTHM = cast(-elu(f_BTHM), x_BTD.dtype());  // 1 - f, as a difference 0 where f is near 1
    Var choice_BTHM = softmax(tokens.recur({made(q_), made(k_), write_BTHM, f_BTHM}, {.side = ops::DecaySide::value}));
    Var o = tokens.recur({choice_BTHM, write_BTHM, made(v_), f_BTHM});
    return out_(norm_(silu(merge_heads(tokens.heads(o)))));
  }

  double flops_per_token(double) const override { return 2 * recurrence_flops(o_.heads, dim_ / o_.heads, o_.slots); }

 private:
  GatedSlotsOptions o_;
  int64_t dim_;
  Linear q_, k_, v_, decay_;
  Norm norm_;
  Linear out_;
};

}  // namespace

std::unique_ptr<Mixer> GatedSlotsOptions::operator()(const MixerArgs& args, Rng rng) const {
  check_heads("gated_slots", heads, args.dim);
  WEFT_CHECK(slots >= 1, str("gated_slots: slots ", slots), "use 1 or more");
  return std::make_unique<GatedSlots>(*this, args, rng);
}

}  // namespace weft
