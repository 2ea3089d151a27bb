// Optimiser steps, one pass over memory each; equations in ops/cpu/optim.h. All tensors are row-major f32 of n elements, and
// `working` is bf16 or null.
#include <algorithm>

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

// Whether steps may move four elements at a time.
bool is_wide_memory(const cpu::MomentMemory& memory) {
  return is_aligned(memory.param) && is_aligned(memory.grad) && is_aligned(memory.moment1) &&
         is_aligned(memory.working);
}
bool is_wide_memory(const cpu::AdamWMemory& memory) {
  return is_wide_memory(cpu::MomentMemory{memory.param, memory.grad, memory.moment1, memory.working}) &&
         is_aligned(memory.moment2);
}

struct AdamW {
  cpu::AdamWMemory memory;
  cpu::AdamWFactors f;

  bool is_wide() const { return is_wide_memory(memory); }
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

struct ScheduleFree {
  cpu::AdamWMemory memory;
  cpu::ScheduleFreeFactors f;

  bool is_wide() const { return is_wide_memory(memory); }
  template <int N>
  __device__ __forceinline__ void step(int64_t i) const {
    const Group<float, N> grad = load<N>(memory.grad + i);
    Group<float, N> y = load<N>(memory.param + i), z = load<N>(memory.moment1 + i), v = load<N>(memory.moment2 + i);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const float g = grad.at[k] * f.grad_scale;
      v.at[k] = fmaf(f.beta2, v.at[k], f.rest2 * g * g);
      const float u = fmaf(f.decay, y.at[k], g / (sqrtf(v.at[k]) + f.eps));
      y.at[k] = fmaf(f.average, z.at[k] - y.at[k], y.at[k]) - f.y_step * u;
      z.at[k] -= f.lr * u;
    }
    store<N>(memory.moment1 + i, z);
    store<N>(memory.moment2 + i, v);
    store<N>(memory.param + i, y);
    store_working<N>(memory.working, i, y);
  }
};

struct Lion {
  cpu::MomentMemory memory;
  cpu::LionFactors f;

  bool is_wide() const { return is_wide_memory(memory); }
  template <int N>
  __device__ __forceinline__ void step(int64_t i) const {
    const Group<float, N> grad = load<N>(memory.grad + i);
    Group<float, N> p = load<N>(memory.param + i), m = load<N>(memory.moment1 + i);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const float g = grad.at[k] * f.grad_scale;
      const float u = fmaf(f.beta1, m.at[k], f.rest1 * g);
      const float sign = u > 0 ? 1.0f : u < 0 ? -1.0f : u;  // 0 and NaN as they are
      p.at[k] = p.at[k] * f.keep - f.lr * sign;
      m.at[k] = fmaf(f.beta2, m.at[k], f.rest2 * g);
    }
    store<N>(memory.moment1 + i, m);
    store<N>(memory.param + i, p);
    store_working<N>(memory.working, i, p);
  }
};

struct Sgd {
  cpu::MomentMemory memory;
  cpu::SgdFactors f;

  bool is_wide() const { return is_wide_memory(memory); }
  template <int N>
  __device__ __forceinline__ void step(int64_t i) const {
    const Group<float, N> grad = load<N>(memory.grad + i);
    Group<float, N> p = load<N>(memory.param + i), u;
#pragma unroll
    for (int k = 0; k < N; ++k) u.at[k] = fmaf(f.decay, p.at[k], grad.at[k] * f.grad_scale);
    if (f.momentum > 0) {
      Group<float, N> m = load<N>(memory.moment1 + i);
#pragma unroll
      for (int k = 0; k < N; ++k) {
        m.at[k] = fmaf(f.momentum, m.at[k], u.at[k]);
        u.at[k] = f.is_nesterov ? fmaf(f.momentum, m.at[k], u.at[k]) : m.at[k];
      }
      store<N>(memory.moment1 + i, m);
    }
#pragma unroll
    for (int k = 0; k < N; ++k) p.at[k] -= f.lr * u.at[k];
    store<N>(memory.param + i, p);
    store_working<N>(memory.working, i, p);
  }
};

// The steps of many tensors in one launch: a block takes kChunk elements of one of them.
constexpr int kMany = 48;
constexpr int64_t kChunk = 16 * kThreads;

template <class Step>
struct Many {
  Step steps[kMany];
  int64_t sizes[kMany];
  int64_t first_chunk[kMany + 1];
  bool is_wide[kMany];
  int count = 0;
};

// W elements at a time, and what is left one by one.
template <int W, class Step>
__device__ __forceinline__ void chunk(const Step& step, int64_t begin, int64_t end) {
  const int64_t groups = (end - begin) / W;
  for (int64_t g = threadIdx.x; g < groups; g += blockDim.x) step.template step<W>(begin + g * W);
  for (int64_t i = begin + groups * W + threadIdx.x; i < end; i += blockDim.x) step.template step<1>(i);
}

template <class Step>
__global__ void __launch_bounds__(kThreads) run_chunks(__grid_constant__ const Many<Step> many) {
  for (int64_t c = blockIdx.x; c < many.first_chunk[many.count]; c += gridDim.x) {
    int low = 0, high = many.count - 1;  // the last tensor that begins at or before this chunk
    while (low < high) {
      const int middle = (low + high + 1) / 2;
      if (many.first_chunk[middle] <= c) low = middle;
      else high = middle - 1;
    }
    const int64_t begin = (c - many.first_chunk[low]) * kChunk, size = many.sizes[low];
    const int64_t end = begin + kChunk < size ? begin + kChunk : size;
    if (many.is_wide[low]) chunk<4>(many.steps[low], begin, end);
    else chunk<1>(many.steps[low], begin, end);
  }
}

// step_of(i) for the tensors of the group; kChunk is a multiple of 4, so a wide tensor's chunks are aligned.
template <class StepOf>
void run(std::string_view op, std::span<ops::OptimTensors> group, StepOf&& step_of) {
  using Step = decltype(step_of(size_t{}));
  for (size_t begin = 0; begin < group.size(); begin += kMany) {
    Many<Step> many;
    many.first_chunk[0] = 0;
    for (size_t i = begin; i < std::min(group.size(), begin + kMany); ++i) {
      const int64_t n = group[i].param.num_elements();
      if (n == 0) continue;
      const int at = many.count++;
      many.steps[at] = step_of(i);
      many.is_wide[at] = many.steps[at].is_wide();
      many.sizes[at] = n;
      many.first_chunk[at + 1] = many.first_chunk[at] + (n + kChunk - 1) / kChunk;
    }
    if (many.count == 0) continue;
    launch(op, run_chunks<Step>, grid_of(many.first_chunk[many.count], 1), kThreads, 0, stream_of(group[0].param),
           many);
  }
}

BFloat16* working_copy(ops::OptimTensors& t) {
  return t.working.defined() ? t.working.mutable_data<BFloat16>() : nullptr;
}

cpu::MomentMemory memory_of(ops::OptimTensors& t) {
  return {t.param.mutable_data<float>(), t.grad.data<float>(),
          t.moment1.defined() ? t.moment1.mutable_data<float>() : nullptr, working_copy(t)};
}

}  // namespace

void adamw(std::span<ops::OptimTensors> group, const cpu::AdamWFactors& factors) {
  run("adamw_", group, [&](size_t i) {
    ops::OptimTensors& t = group[i];
    return AdamW{{t.param.mutable_data<float>(), t.grad.data<float>(), t.moment1.mutable_data<float>(),
                  t.moment2.mutable_data<float>(), working_copy(t)},
                 factors};
  });
}

void muon_momentum(std::span<ops::OptimTensors> group, Tensor& updates, float beta, float grad_scale,
                   bool is_nesterov) {
  auto* out = updates.mutable_data<float>();
  run("muon_", group, [&](size_t i) {
    ops::OptimTensors& t = group[i];
    return MuonMomentum{t.moment1.mutable_data<float>(),
                        t.grad.data<float>(),
                        out + static_cast<int64_t>(i) * t.param.num_elements(),
                        beta,
                        grad_scale,
                        is_nesterov};
  });
}

void muon_apply(std::span<ops::OptimTensors> group, const Tensor& updates, float keep, float step_size) {
  const auto* in = updates.data<float>();
  run("muon_", group, [&](size_t i) {
    ops::OptimTensors& t = group[i];
    return MuonApply{t.param.mutable_data<float>(), in + static_cast<int64_t>(i) * t.param.num_elements(),
                     working_copy(t), keep, step_size};
  });
}

void schedule_free(std::span<ops::OptimTensors> group, const cpu::ScheduleFreeFactors& factors) {
  run("schedule_free_adamw_", group, [&](size_t i) {
    ops::OptimTensors& t = group[i];
    return ScheduleFree{{t.param.mutable_data<float>(), t.grad.data<float>(), t.moment1.mutable_data<float>(),
                         t.moment2.mutable_data<float>(), working_copy(t)},
                        factors};
  });
}

void lion(std::span<ops::OptimTensors> group, const cpu::LionFactors& factors) {
  run("lion_", group, [&](size_t i) { return Lion{memory_of(group[i]), factors}; });
}

void sgd(std::span<ops::OptimTensors> group, const cpu::SgdFactors& factors) {
  run("sgd_", group, [&](size_t i) { return Sgd{memory_of(group[i]), factors}; });
}

}  // namespace weft::cuda
