// One attention call as plain numbers and pointers: what the checks in ops/attention.cpp hand to a kernel.
#pragma once

#include <cstdint>

#include "weft/ops/attention.h"
#include "weft/ops/attention/bias.h"
#include "weft/ops/attention/tokens.h"

namespace weft::ops::core {

// A [batch, tokens, heads, width] tensor whose width is contiguous; strides in elements.
struct Operand {
  const void* data = nullptr;
  int64_t batch_stride = 0, token_stride = 0, head_stride = 0;
  bool is_bf16 = false;  // otherwise the type the kernel computes in

  WEFT_HD Operand at(int64_t b, int64_t head) const {
    Operand o = *this;
    o.data = static_cast<const char*>(data) + (b * batch_stride + head * head_stride) * element_bytes;
    return o;
  }
  int64_t element_bytes = 4;
};

struct Problem {
  int64_t batch = 0, queries = 0, keys = 0, heads = 0, kv_heads = 0, key_width = 0, value_width = 0;
  int64_t first_row = 0, first_head = 0;
  double scale = 1, dropout = 0;
  uint64_t dropout_key = 0;
  Operand q, k, v, dout;
  TokenView query_tokens, key_tokens;
  BiasView query_bias, key_bias;
  // Forward: contiguous [B, T, H, V] and [B, T, H]. With `has_state` the old values are the initial state.
  void* out = nullptr;
  bool out_is_bf16 = false, has_state = false;
  void* statistic = nullptr;
  bool is_statistic_f64 = false;  // of a state in f32 on the CPU, so that many calls round it once
  // Backward: contiguous statistic and delta [B, T, H]; accumulators of the inputs' shapes in the computing type, or new memory whose every
  // element is stored: in bf16, and on the CPU without `has_state`.
  bool are_grads_bf16 = false;
  const void* delta = nullptr;
  void *dq = nullptr, *dk = nullptr, *dv = nullptr;
  // Statistics: column mass [B, S, H], entropy and largest score [B, T, H].
  float *mass = nullptr, *entropy = nullptr, *top = nullptr;
  DType compute = kF32;             // f64 for f64 tensors
  AttentionPlans* plans = nullptr;  // of the tokens, where both sides are the same ones
  Device device = Device::cpu();

  WEFT_HD int64_t heads_per_group() const { return heads / kv_heads; }
};

// Checks everything a user can get wrong and fills a Problem; `op` opens the error texts.
Problem make_problem(std::string_view op, const Tensor& q, const Tensor& k, const Tensor* v,
                     const AttentionTokens& queries, const AttentionTokens& keys, const AttentionOptions& options);
void bind_state(Problem& problem, std::string_view op, AttentionState& state, bool has_statistic);
void bind_backward(Problem& problem, std::string_view op, AttentionGrads& grads, const Tensor& dout,
                   const Tensor& statistic, const Tensor& delta, bool has_statistic);

// Scratch memory of this thread: at least `bytes`, 64-byte aligned. It grows as needed and is kept. One user at a time.
std::byte* scratch(size_t bytes);

}  // namespace weft::ops::core
