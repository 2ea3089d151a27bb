#include "weft/autograd/attention_merge.h"

#include "weft/autograd/functions.h"
#include "weft/autograd/record.h"
#include "weft/core/error.h"
#include "weft/ops/attention_merge.h"

namespace weft {

std::array<Var, 2> merge(const std::array<Var, 2>& given_a, const std::array<Var, 2>& given_b) {
  WEFT_CHECK(given_a[0].defined() && given_b[0].defined(), "merge: a side without out", "give what attend() returned");
  auto unrounded = [](const std::array<Var, 2>& side) {
    return side[0].dtype() == kBF16 ? std::array{cast(side[0], kF32), side[1]} : side;
  };
  const std::array<Var, 2> a = unrounded(given_a), b = unrounded(given_b);
  auto state = [](const std::array<Var, 2>& of) { return ops::AttentionState{of[0].value(), of[1].value()}; };
  const ops::AttentionState merged = ops::merge(state(a), state(b));
  auto backward_of = [out_a = Saved(a[0].value()), lse_a = Saved(a[1].value()), out_b = Saved(b[0].value()),
                      lse_b = Saved(b[1].value()), out = Saved(merged.out),
                      lse = Saved(merged.lse)](std::span<const Tensor> dys, Wants) {
    const Tensor& y = out.get();
    const Tensor dout = dys[0].defined() ? dys[0] : Tensor::zeros(y.shape(), y.dtype(), y.device());
    auto [da, db] =
        ops::merge_backward(dout, dys[1], {out_a.get(), lse_a.get()}, {out_b.get(), lse_b.get()}, {y, lse.get()});
    return Grads{da.out, da.lse, db.out, db.lse};
  };
  return record("merge", std::array<Tensor, 2>{merged.out, merged.lse}, {a[0], a[1], b[0], b[1]},
                std::move(backward_of));
}

}  // namespace weft
