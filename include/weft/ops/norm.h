// Normalisations over the last dimension D: RMSNorm, LayerNorm, softmax, logsumexp. Statistics are f32 (f64 for f64).
// weight and bias are of that type or of x's; their gradients are of that type, and the same for any number of threads. On a CUDA
// device they are the same in every run and on every model of GPU.
#pragma once

#include <utility>

#include "weft/core/tensor.h"

namespace weft::ops {

struct RmsNorm {
  Tensor y;        // x / sqrt(mean(x^2) + eps) * weight
  Tensor inv_rms;  // [...], what the backward keeps besides x
};
RmsNorm rms_norm(const Tensor& x, const Tensor& weight, double eps);  // weight [D], or undefined for ones
struct RmsNormGrads {
  Tensor dx, dweight;
};
RmsNormGrads rms_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& weight, const Tensor& inv_rms);

struct LayerNorm {
  Tensor y;              // (x - mean) * inv_std * weight + bias
  Tensor mean, inv_std;  // [...]
};
LayerNorm layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps);  // bias may be undefined
struct LayerNormGrads {
  Tensor dx, dweight, dbias;
};
LayerNormGrads layer_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& weight, const Tensor& mean,
                                   const Tensor& inv_std);

Tensor softmax(const Tensor& x);  // a row of -inf gives zeros
Tensor softmax_backward(const Tensor& dy, const Tensor& y);
Tensor logsumexp(const Tensor& x);  // [...]; f32 for bf16; a row of -inf gives -inf
Tensor logsumexp_backward(const Tensor& dl, const Tensor& x, const Tensor& l);

}  // namespace weft::ops
