// The blockwise softmax core on CUDA devices: what ops/attention.cpp calls with a checked Problem whose pointers are memory of
// problem.device. Three paths: bf16 on tensor cores (*_bf16), the same on Hopper's warpgroups if asked for by name (*_wgmma), and
// plain arithmetic in f32 or f64 for everything else (*_f32). Widths of keys and values are at most kMaxWidth.
#pragma once

#include "weft/ops/attention.h"
#include "weft/ops/attention/problem.h"

namespace weft::cuda {

namespace attention {
inline constexpr int64_t kMaxWidth = 256;
}

void attention_forward(const ops::core::Problem& problem, const ops::AttentionOptions& options);
// Adds to dq, dk and dv, each element by one thread and in the same order in every run.
void attention_backward(const ops::core::Problem& problem, const ops::AttentionOptions& options);
// Whether backward of bf16 tensors runs on tensor cores, where gradients can be stored in bf16 (Problem::are_grads_bf16).
bool stores_bf16_gradients(const ops::core::Problem& problem);
void attention_statistics(const ops::core::Problem& problem, const ops::AttentionOptions& options);
// delta[b, t, h] = dout . out - dlse; dlse (may be null) and delta are contiguous, in the computing type.
void attention_delta(const ops::core::Problem& problem, const ops::core::Operand& out, const void* dlse, void* delta);

// The paths. Widths: the wider of keys and values, rounded up. Each instance is compiled in a file of its own, because that
// takes minutes: {forward, backward} x {f32, f64} or {forward, backward} x bf16 x {64, 128, 256} or {forward, backward} x wgmma x
// {64, 128}, times the functors of pairs.cuh.
namespace attention {
template <class T>
void forward_plain(const ops::core::Problem& problem, const ops::AttentionOptions& options);
template <class T>
void backward_plain(const ops::core::Problem& problem, const ops::AttentionOptions& options);
template <int kWidth>
void forward_bf16(const ops::core::Problem& problem, const ops::AttentionOptions& options);
template <int kWidth>
void backward_bf16(const ops::core::Problem& problem, const ops::AttentionOptions& options);
template <int kWidth>
void forward_wgmma(const ops::core::Problem& problem, const ops::AttentionOptions& options);
template <int kWidth>
void backward_wgmma(const ops::core::Problem& problem, const ops::AttentionOptions& options);
}  // namespace attention

}  // namespace weft::cuda
