// Which instance a call takes. dout may be f32 beside bf16 inputs, for a running output is f32: such a backward stays in f32.
#include <algorithm>

#include "ops/cuda/attention/kernels.h"

namespace weft::cuda {

namespace {

template <class F>
void with_width(const ops::core::Problem& p, F&& run) {
  const int64_t width = std::max(p.key_width, p.value_width);
  if (width <= 64) run.template operator()<64>();
  else if (width <= 128) run.template operator()<128>();
  else run.template operator()<256>();
}

}  // namespace

void attention_forward(const ops::core::Problem& problem, const ops::AttentionOptions& options) {
  if (problem.compute == kF64) attention::forward_plain<double>(problem, options);
  else if (!problem.q.is_bf16) attention::forward_plain<float>(problem, options);
  else with_width(problem, [&]<int kWidth>() { attention::forward_bf16<kWidth>(problem, options); });
}

void attention_backward(const ops::core::Problem& problem, const ops::AttentionOptions& options) {
  if (problem.compute == kF64) attention::backward_plain<double>(problem, options);
  else if (!problem.q.is_bf16 || !problem.dout.is_bf16) attention::backward_plain<float>(problem, options);
  else with_width(problem, [&]<int kWidth>() { attention::backward_bf16<kWidth>(problem, options); });
}

}  // namespace weft::cuda
