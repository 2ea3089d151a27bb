// Optimiser steps, one pass over memory each; equations in ops/cpu/optim.h. All tensors are row-major f32 of n elements, and
// `working` is bf16 or null.
#include "ops/cuda/kernel.cuh"
#include "ops/cuda/optim.h"

namespace weft::cuda {

namespace {

template <int N>
__device__ __forceinline__ Group<float, N> load(const float* at) {
  return *reinterpret_cast<const Group<float, N>*>(at);
}
template <int N>
__device__ __forceinline__ void store(float* at, const Group<float, N>& x) {
  *reinterpret_cast<Group<float, N>*>(at) = x;
}
template <int N>
__device__ __forceinline__ void store_working(BFloat16* working, int64_t i, const Group<float, N>& x) {
  if (!working) return;
  Group<BFloat16, N> rounded;
#pragma unroll
  for (int k = 0; k < N; ++k) rounded.at[k] = BFloat16(x.at[k]);
  *reinterpret_cast<Group<BFloat16, N>*>(working + i) = rounded;
}

struct AdamW {
  cpu::AdamWMemory memory;
  cpu::AdamWFactors f;

  bool is_wide() const {
    return is_aligned(memory.param) && is_aligned(memory.grad) && is_aligned(memory.moment1) &&
           is_aligned(memory.moment2) && is_aligned(memory.working);
  }
  template <int N>
  __device__ __forceinline__ void step(int64_t i) const {
    const Group<float, N> grad = load<N>(memory.grad + i);
    Group<float, N> p = load<N>(memory.param + i), m = load<N>(memory.moment1 + i), v = load<N>(memory.moment2 + i);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const float g = grad.at[k] * f.grad_scale;
      m.at[k] = fmaf(f.beta1, m.at[k], f.rest1 * g);
      v.at[k] = fmaf(f.beta2, v.at[k], f.rest2 * g * g);
      const float root = fmaf(sqrtf(v.at[k]), f.root_scale, f.eps);
      p.at[k] = p.at[k] * f.keep - f.step_size * m.at[k] / root;
    }
    store<N>(memory.moment1 + i, m);
    store<N>(memory.moment2 + i, v);
    store<N>(memory.param + i, p);
    store_working<N>(memory.working, i, p);
  }
};

struct MuonMomentum {
  float* buffer;
  const float* grad;
  float* update;
  float beta, grad_scale;
  bool is_nesterov;

  bool is_wide() const { return is_aligned(buffer) && is_aligned(grad) && is_aligned(update); }
  template <int N>
  __device__ __forceinline__ void step(int64_t i) const {
    const Group<float, N> grads = load<N>(grad + i);
    Group<float, N> b = load<N>(buffer + i), u;
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const float g = grads.at[k] * grad_scale;
      b.at[k] = fmaf(1 - beta, g - b.at[k], b.at[k]);
      u.at[k] = is_nesterov ? fmaf(beta, b.at[k] - g, g) : b.at[k];
    }
    store<N>(buffer + i, b);
    store<N>(update + i, u);
  }
};

struct MuonApply {
  float* param;
  const float* update;
  BFloat16* working;
  float keep, step_size;

  bool is_wide() const { return is_aligned(param) && is_aligned(update) && is_aligned(working); }
  template <int N>
  __device__ __forceinline__ void step(int64_t i) const {
    const Group<float, N> u = load<N>(update + i);
    Group<float, N> p = load<N>(param + i);
#pragma unroll
    for (int k = 0; k < N; ++k) p.at[k] = p.at[k] * keep - step_size * u.at[k];
    store<N>(param + i, p);
    store_working<N>(working, i, p);
  }
};

// W elements at a time, and what is left one by one.
template <int W, class Step>
__global__ void __launch_bounds__(kThreads) steps(Step step, int64_t n) {
  const int64_t groups = n / W, me = thread_index();
  for (int64_t g = me; g < groups; g += thread_count()) step.template step<W>(g * W);
  for (int64_t i = groups * W + me; i < n; i += thread_count()) step.template step<1>(i);
}

template <class Step>
void run(std::string_view op, const Step& step, int64_t n, const Tensor& of) {
  if (n == 0) return;
  auto start = [&](auto* kernel, int64_t width) {
    launch(op, kernel, grid_of(n, kThreads * width), kThreads, 0, stream_of(of), step, n);
  };
  if (step.is_wide()) start(steps<4, Step>, 4);
  else start(steps<1, Step>, 1);
}

BFloat16* working_copy(Tensor& working) { return working.defined() ? working.mutable_data<BFloat16>() : nullptr; }

}  // namespace

void adamw(Tensor& param, const Tensor& grad, Tensor& moment1, Tensor& moment2, Tensor& working,
           const AdamWFactors& factors) {
  AdamW step{{param.mutable_data<float>(), grad.data<float>(), moment1.mutable_data<float>(),
              moment2.mutable_data<float>(), working_copy(working)},
             factors};
  run("adamw_", step, param.num_elements(), param);
}

void muon_momentum(Tensor& buffer, const Tensor& grad, Tensor& update, float beta, float grad_scale, bool is_nesterov) {
  MuonMomentum step{
      buffer.mutable_data<float>(), grad.data<float>(), update.mutable_data<float>(), beta, grad_scale, is_nesterov};
  run("muon_", step, buffer.num_elements(), buffer);
}

void muon_apply(Tensor& param, const Tensor& update, Tensor& working, float keep, float step_size) {
  MuonApply step{param.mutable_data<float>(), update.data<float>(), working_copy(working), keep, step_size};
  run("muon_", step, param.num_elements(), param);
}

}  // namespace weft::cuda
