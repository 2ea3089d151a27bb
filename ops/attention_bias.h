// Biases of scores per token: checks, and the form in which kernels read them (weft/ops/attention/bias.h).
#pragma once

#include <string_view>

#include "weft/ops/attention.h"
#include "weft/ops/attention/problem.h"
#include "weft/ops/elementwise.h"

namespace weft::ops::core {

// Contiguous float64 copies that `problem` points into: they must live until the kernels have been asked for.
struct Biases {
  Tensor query, key;
};

inline bool has_biases(const AttentionScore& score) { return score.query_bias.defined() || score.key_bias.defined(); }

inline BiasView bias_view(std::string_view op, std::string_view name, const Tensor& bias, Tensor& copy,
                          const Problem& p, int64_t tokens, bool may_be_shared) {
  if (!bias.defined()) return {};
  const Shape each{p.batch, tokens, p.heads}, shared{p.batch, tokens, p.kv_heads};
  WEFT_CHECK(
      (bias.shape() == each || (may_be_shared && bias.shape() == shared)) &&
          (bias.dtype() == kF32 || bias.dtype() == kF64),
      str(op, ": ", name, " is ", bias, ", must be ", each, may_be_shared ? str(" or ", shared) : "", " f32 or f64"),
      "give one number per token of that side and head, in f64 if it is a running sum");
  WEFT_CHECK(bias.device() == p.device, str(op, ": ", name, " is ", bias, ", but q is on ", p.device),
             str("move ", name, " to ", p.device));
  copy = contiguous(cast(bias, kF64));
  return {.data = copy.data<double>(), .tokens = tokens, .heads = bias.size(2), .heads_each = p.heads / bias.size(2)};
}

inline Biases bind_biases(Problem& p, std::string_view op, const AttentionScore& score) {
  Biases copies;
  p.query_bias = bias_view(op, "query_bias", score.query_bias, copies.query, p, p.queries, false);
  p.key_bias = bias_view(op, "key_bias", score.key_bias, copies.key, p, p.keys, true);
  return copies;
}

// Where the gradients of bound biases are added; undefined: nowhere.
inline void bind_bias_gradient(BiasView& view, std::string_view op, std::string_view name, Tensor& gradient,
                               const Tensor& bias, Device device) {
  if (!gradient.defined()) return;
  WEFT_CHECK(bias.defined() && gradient.shape() == bias.shape() && gradient.dtype() == kF64 &&
                 gradient.is_contiguous() && gradient.device() == device,
             str(op, ": ", name, " is ", gradient, ", the bias is ", bias.defined() ? to_string(bias) : "undefined"),
             "make it as f64 zeros of the bias's shape on the device of q, or leave it undefined");
  view.gradient = gradient.mutable_data<double>();
}

inline void bind_bias_gradients(Problem& p, std::string_view op, AttentionGrads& grads, const AttentionScore& score) {
  bind_bias_gradient(p.query_bias, op, "dquery_bias", grads.dquery_bias, score.query_bias, p.device);
  bind_bias_gradient(p.key_bias, op, "dkey_bias", grads.dkey_bias, score.key_bias, p.device);
}

}  // namespace weft::ops::core
