// attend() with functors of your own, and its gradients: include this in a program compiled for the CPU it runs on (-march=native).
//   auto [out, lse] = attend_with(Dilated{}, PlainScore{}, SoftmaxNormaliser{}, q, k, v, queries, keys, options);
// The contracts of masks, scores and normalisers, and what `options` gives, are in weft/ops/attention_core.h. A score's slope() is its
// derivative at q . k; what else a functor reads has no gradient. Tensors are on the CPU.
#pragma once

#include <array>

#include "weft/autograd/recompute.h"
#include "weft/autograd/record.h"
#include "weft/ops/attention_core.h"
#include "weft/ops/elementwise.h"

namespace weft {
namespace {

// {out [B, T, H, V] in q's dtype, lse [B, T, H]}, both differentiable; lse is undefined for normalisers without one.
template <class Mask, class Score, class Normaliser>
std::array<Var, 2> attend_with(const Mask& mask, const Score& score, Normaliser normaliser, const Var& q_BTHK,
                               const Var& k_BSGK, const Var& v_BSGV, const ops::AttentionTokens& queries,
                               const ops::AttentionTokens& keys, const ops::AttentionOptions& options) {
  const Tensor &q = q_BTHK.value(), &k = k_BSGK.value(), &v = v_BSGV.value();
  const std::vector<Tensor> kept_result = kept_by_recompute("attend_with", [&] {
    ops::Attention y = ops::attend_with(mask, score, normaliser, q, k, v, queries, keys, options);
    return std::vector<Tensor>{y.out, y.lse};
  });
  const ops::Attention result{kept_result[0], kept_result[1]};
  ops::AttentionOptions own = options;
  own.normaliser = Normaliser::kHasStatistic ? ops::Normaliser::softmax : ops::Normaliser::sum;
  auto backward_of = [mask, score, normaliser, queries, keys, own, q = Saved(q), k = Saved(k), v = Saved(v),
                      out = Saved(result.out), lse = Saved(result.lse),
                      kept = std::array{Saved(queries.positions), Saved(queries.documents), Saved(keys.positions),
                                        Saved(keys.documents)}](std::span<const Tensor> dys, Wants) {
    for (const Saved& tensor : kept) tensor.get();  // an Error if one changed
    const Tensor& y = out.get();
    Tensor dout = dys[0].defined() ? ops::cast(dys[0], y.dtype()) : Tensor::zeros(y.shape(), y.dtype(), y.device());
    if (dout.strides()[3] != 1) dout = ops::contiguous(dout);
    Tensor dlse = dys[1].defined() ? ops::contiguous(dys[1]) : Tensor();
    auto zeros = [&](const Tensor& x) { return Tensor::zeros(x.shape(), y.dtype(), x.device()); };
    ops::AttentionGrads grads{zeros(q), zeros(k), zeros(v)};
    ops::attend_block_backward_with(mask, score, normaliser, grads, dout, q, k, v, lse,
                                    ops::attention_delta(dout, y, dlse, own), queries, keys, own);
    const DType dtype = q.get().dtype();
    return Grads{ops::cast(grads.dq, dtype), ops::cast(grads.dk, dtype), ops::cast(grads.dv, dtype)};
  };
  auto both = record("attend_with", std::array<Tensor, 2>{result.out, result.lse}, {q_BTHK, k_BSGK, v_BSGV},
                     std::move(backward_of));
  return {cast(both[0], q_BTHK.dtype()), both[1]};
}

}  // namespace
}  // namespace weft
