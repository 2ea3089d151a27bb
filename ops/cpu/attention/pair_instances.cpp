// The instances for bf16 tensors on CPUs with AVX-512 BF16: the scores and normalisers of instances.cpp, with pairs as operands.
#include "ops/cpu/attention/functors.h"
#include "ops/cpu/attention/pair_products.h"

namespace weft {

// Made here it would be a function of this file's instruction set that other objects may share; src/core/tensor.cpp has it.
extern template const float* Tensor::data<float>() const;

}  // namespace weft

namespace weft::cpu {

void PairKernels::forward(const core::Problem& problem, const AttentionOptions& options) {
  StandardMask mask(options.mask);
  with_functors(options, [&](const auto& score, auto normaliser) {
    core::run_pass<core::Bf16Pairs, core::Forward, decltype(normaliser)>(problem, mask, score);
  });
}

void PairKernels::backward(const core::Problem& problem, const AttentionOptions& options) {
  StandardMask mask(options.mask);
  with_functors(options, [&](const auto& score, auto normaliser) {
    core::run_pass<core::Bf16Pairs, core::Backward, decltype(normaliser)>(problem, mask, score);
  });
}

}  // namespace weft::cpu
