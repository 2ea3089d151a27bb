// The attention core with functors of your own: include this in a program compiled for the CPU it runs on (-march=native).
//   struct Dilated {                               // every second key
//     template <class I> auto keep(int64_t, int64_t, Token<I> q, Token<I> k) const {
//       return (k.position <= q.position) & (((q.position - k.position) & 1) == 0);
//     }
//     Cover cover(int64_t, int64_t, TokenRange q, TokenRange k) const {
//       return k.position_min > q.position_max ? Cover::empty : Cover::partial;
//     }
//   };
//   Attention y = attend_with(Dilated{}, PlainScore{}, SoftmaxNormaliser{}, q, k, v, queries, keys, options);
// What a functor must have is in attention/tokens.h (mask), score.h and normaliser.h. Of `options`, scale and dropout are used; mask, score
// and normaliser are ignored: the functors say them. Shapes and errors as in weft/ops/attention.h; tensors are on the CPU, bf16 is computed in f32.
#pragma once

#include "weft/ops/attention.h"
#include "weft/ops/attention/backward.h"
#include "weft/ops/attention/compose.h"
#include "weft/ops/attention/forward.h"
#include "weft/ops/attention/mask.h"
#include "weft/ops/attention/statistics.h"

namespace weft::ops {

namespace core {
namespace {

inline void check_on_cpu(const char* op, const Problem& problem) {
  WEFT_CHECK(problem.device.is_cpu(), str(op, ": q is on ", problem.device, "; functors of your own run on the CPU"),
             "move the tensors to Device::cpu(), or use attend()");
}

template <class T, template <class, class...> class Pass, class... More, class Mask, class Score>
void run_pass(const Problem& problem, const Mask& mask, const Score& score) {
  if (problem.batch * problem.heads > 0) Pass<T, Mask, Score, More...>(problem, mask, score).run();
}

}  // namespace
}  // namespace core

namespace {

// attend_block() with functors: merges the keys' contribution into `state` in place.
template <class Mask, class Score, class Normaliser>
void attend_block_with(const Mask& mask, const Score& score, Normaliser, AttentionState& state, const Tensor& q_BTHK,
                       const Tensor& k_BSGK, const Tensor& v_BSGV, const AttentionTokens& queries,
                       const AttentionTokens& keys, const AttentionOptions& options) {
  core::Problem problem = core::make_problem("attend_block_with", q_BTHK, k_BSGK, &v_BSGV, queries, keys, options);
  core::check_on_cpu("attend_block_with", problem);
  core::bind_state(problem, "attend_block_with", state, Normaliser::kHasStatistic);
  if (problem.compute == kF64) core::run_pass<double, core::Forward, Normaliser>(problem, mask, score);
  else core::run_pass<float, core::Forward, Normaliser>(problem, mask, score);
}

// attend() with functors; out is f32 (f64 for f64).
template <class Mask, class Score, class Normaliser>
Attention attend_with(const Mask& mask, const Score& score, Normaliser normaliser, const Tensor& q_BTHK,
                      const Tensor& k_BSGK, const Tensor& v_BSGV, const AttentionTokens& queries,
                      const AttentionTokens& keys, const AttentionOptions& options) {
  AttentionOptions shape_only;
  shape_only.normaliser = Normaliser::kHasStatistic ? weft::ops::Normaliser::softmax : weft::ops::Normaliser::sum;
  AttentionState state = attention_state(q_BTHK, v_BSGV.size(-1), shape_only);
  attend_block_with(mask, score, normaliser, state, q_BTHK, k_BSGK, v_BSGV, queries, keys, options);
  return {state.out, state.lse};
}

// attend_block_backward() with functors.
template <class Mask, class Score, class Normaliser>
void attend_block_backward_with(const Mask& mask, const Score& score, Normaliser, AttentionGrads& grads,
                                const Tensor& dout_BTHV, const Tensor& q_BTHK, const Tensor& k_BSGK,
                                const Tensor& v_BSGV, const Tensor& lse_BTH, const Tensor& delta_BTH,
                                const AttentionTokens& queries, const AttentionTokens& keys,
                                const AttentionOptions& options) {
  constexpr const char* op = "attend_block_backward_with";
  core::Problem problem = core::make_problem(op, q_BTHK, k_BSGK, &v_BSGV, queries, keys, options);
  core::check_on_cpu(op, problem);
  core::bind_backward(problem, op, grads, dout_BTHV, lse_BTH, delta_BTH, Normaliser::kHasStatistic);
  if (problem.compute == kF64) core::run_pass<double, core::Backward, Normaliser>(problem, mask, score);
  else core::run_pass<float, core::Backward, Normaliser>(problem, mask, score);
}

}  // namespace
}  // namespace weft::ops
