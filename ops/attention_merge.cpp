// With l = log(exp(l_a) + exp(l_b)) and w_a = exp(l_a - l):
//   out = w_a out_a + w_b out_b
//   d out_a = w_a dout, d l_a = w_a (dout . (out_a - out) + dl)
// l is max + log1p(exp(min - max)), which no difference of the two makes infinite.
#include "weft/ops/attention_merge.h"

#include <cmath>

#include "weft/core/error.h"
#include "weft/ops/elementwise.h"
#include "weft/ops/reduce.h"

namespace weft::ops {

namespace {

void check_state(std::string_view op, std::string_view name, const AttentionState& state) {
  const Tensor& out = state.out;
  WEFT_CHECK(out.defined() && out.num_dims() == 4 && (out.dtype() == kF32 || out.dtype() == kF64),
             str(op, ": out of ", name, " is ", out.defined() ? to_string(out) : "undefined",
                 ", must be [B, T, H, V] f32 or f64"),
             "give the state of attend_block(), which is not rounded");
  const Shape rows{out.size(0), out.size(1), out.size(2)};
  WEFT_CHECK(!state.lse.defined() || (state.lse.shape() == rows && state.lse.dtype() == out.dtype()),
             str(op, ": lse of ", name, " is ", state.lse, " for out ", out), "lse is [B, T, H] in the dtype of out");
}

void check_pair(std::string_view op, const AttentionState& a, const AttentionState& b) {
  check_state(op, "a", a), check_state(op, "b", b);
  WEFT_CHECK(a.out.shape() == b.out.shape() && a.out.dtype() == b.out.dtype() && a.out.device() == b.out.device(),
             str(op, ": out of a is ", a.out, ", of b ", b.out), "merge results of the same queries");
  WEFT_CHECK(a.lse.defined() == b.lse.defined(), str(op, ": only ", a.lse.defined() ? "a" : "b", " has an lse"),
             "merge results of one normaliser");
}

// exp(part - whole) per query, as a column beside out; 0 where neither side has a key.
Tensor share_of(const Tensor& part, const Tensor& whole) {
  return exp(sub(part, where(equal(whole, -INFINITY), 0.0, whole))).unsqueeze(-1);
}

}  // namespace

AttentionState merge(const AttentionState& a, const AttentionState& b) {
  check_pair("merge", a, b);
  if (!a.lse.defined()) return {add(a.out, b.out), {}};
  const Tensor high = maximum(a.lse, b.lse), is_empty = equal(high, -INFINITY);
  const Tensor gap = sub(minimum(a.lse, b.lse), where(is_empty, 0.0, high));
  const Tensor lse = add(high, softplus(gap));  // high stays -inf
  return {add(mul(share_of(a.lse, lse), a.out), mul(share_of(b.lse, lse), b.out)), lse};
}

MergeGrads merge_backward(const Tensor& dout_BTHV, const Tensor& dlse_BTH, const AttentionState& a,
                          const AttentionState& b, const AttentionState& merged) {
  constexpr std::string_view op = "merge_backward";
  check_pair(op, a, b);
  check_pair(op, a, merged);
  check_pair(op, a, {dout_BTHV, dlse_BTH.defined() ? dlse_BTH : a.lse});
  if (!a.lse.defined()) return {{dout_BTHV, {}}, {dout_BTHV, {}}};
  auto side = [&](const AttentionState& of) -> AttentionState {
    const Tensor share = share_of(of.lse, merged.lse);
    Tensor dlse = sum(mul(dout_BTHV, sub(of.out, merged.out)), -1);
    if (dlse_BTH.defined()) dlse = add(dlse, dlse_BTH);
    return {mul(share, dout_BTHV), mul(share.squeeze(-1), dlse)};
  };
  return {side(a), side(b)};
}

}  // namespace weft::ops
