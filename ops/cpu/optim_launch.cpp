#include "ops/cpu/loop.h"
#include "ops/cpu/optim.h"
#include "weft/core/parallel.h"

namespace weft::cpu {

namespace {

BFloat16* working_copy(Tensor& working) { return working.defined() ? working.mutable_data<BFloat16>() : nullptr; }

MomentMemory memory_of(Tensor& param, const Tensor& grad, Tensor& moment1, Tensor& working) {
  return {param.mutable_data<float>(), grad.data<float>(), moment1.defined() ? moment1.mutable_data<float>() : nullptr,
          working_copy(working)};
}

}  // namespace

void adamw(Tensor& param, const Tensor& grad, Tensor& moment1, Tensor& moment2, Tensor& working,
           const AdamWFactors& factors) {
  AdamWMemory memory{param.mutable_data<float>(), grad.data<float>(), moment1.mutable_data<float>(),
                     moment2.mutable_data<float>(), working_copy(working)};
  parallel_for(param.num_elements(), kGrain, [&](int64_t begin, int64_t end) {
    with_isa([&]<Isa I>() { OptimKernels<I>::adamw(memory, factors, begin, end); });
  });
}

void muon_momentum(Tensor& buffer, const Tensor& grad, Tensor& update, float beta, float grad_scale, bool is_nesterov) {
  float *to = buffer.mutable_data<float>(), *out = update.mutable_data<float>();
  const float* from = grad.data<float>();
  parallel_for(buffer.num_elements(), kGrain, [&](int64_t begin, int64_t end) {
    with_isa(
        [&]<Isa I>() { OptimKernels<I>::muon_momentum(to, from, out, beta, grad_scale, is_nesterov, begin, end); });
  });
}

void muon_apply(Tensor& param, const Tensor& update, Tensor& working, float keep, float step_size) {
  float* to = param.mutable_data<float>();
  const float* from = update.data<float>();
  BFloat16* copy = working_copy(working);
  parallel_for(param.num_elements(), kGrain, [&](int64_t begin, int64_t end) {
    with_isa([&]<Isa I>() { OptimKernels<I>::muon_apply(to, from, copy, keep, step_size, begin, end); });
  });
}

void schedule_free(Tensor& param, const Tensor& grad, Tensor& moment1, Tensor& moment2, Tensor& working,
                   const ScheduleFreeFactors& factors) {
  AdamWMemory memory{param.mutable_data<float>(), grad.data<float>(), moment1.mutable_data<float>(),
                     moment2.mutable_data<float>(), working_copy(working)};
  parallel_for(param.num_elements(), kGrain, [&](int64_t begin, int64_t end) {
    with_isa([&]<Isa I>() { OptimKernels<I>::schedule_free(memory, factors, begin, end); });
  });
}

void lion(Tensor& param, const Tensor& grad, Tensor& moment1, Tensor& working, const LionFactors& factors) {
  MomentMemory memory = memory_of(param, grad, moment1, working);
  parallel_for(param.num_elements(), kGrain, [&](int64_t begin, int64_t end) {
    with_isa([&]<Isa I>() { OptimKernels<I>::lion(memory, factors, begin, end); });
  });
}

void sgd(Tensor& param, const Tensor& grad, Tensor& moment1, Tensor& working, const SgdFactors& factors) {
  MomentMemory memory = memory_of(param, grad, moment1, working);
  parallel_for(param.num_elements(), kGrain, [&](int64_t begin, int64_t end) {
    with_isa([&]<Isa I>() { OptimKernels<I>::sgd(memory, factors, begin, end); });
  });
}

}  // namespace weft::cpu
