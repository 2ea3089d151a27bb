// Normalisations over the last dimension D: RMSNorm, LayerNorm; softmax, log_softmax, logsumexp over any. Statistics are f32 (f64 for f64).
// weight and bias are of that type or of x's dtype. Their gradients are of that type, and have the same bits for any number of threads. On a
// CUDA device they have the same bits in every run and on every model of GPU.
#pragma once

#include <utility>

#include "weft/core/tensor.h"

namespace weft::ops {

struct RmsNorm {
  Tensor y;        // x / sqrt(mean(x^2) + eps) * weight
  Tensor inv_rms;  // [...], what the backward keeps besides x
};
RmsNorm rms_norm(const Tensor& x, const Tensor& weight, double eps);  // weight [D], or undefined for ones
// Of x + added, which have one shape and dtype, with that sum. The same bits as add() and the norm of its result; on the CPU memory is
// passed over once, on a GPU it is those two.
struct AddedRmsNorm {
  Tensor sum;
  RmsNorm norm;
};
AddedRmsNorm add_rms_norm(const Tensor& x, const Tensor& added, const Tensor& weight, double eps);
struct RmsNormGrads {
  Tensor dx, dweight;
};
// dsum, like x or undefined: what else x gets, as the sum in front of the norm does. dx is then what add() makes of it and dx.
RmsNormGrads rms_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& weight, const Tensor& inv_rms,
                               const Tensor& dsum = {});

struct LayerNorm {
  Tensor y;              // (x - mean) * inv_std * weight + bias
  Tensor mean, inv_std;  // [...]
};
LayerNorm layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps);  // bias may be undefined
struct AddedLayerNorm {                                                                       // as AddedRmsNorm
  Tensor sum;
  LayerNorm norm;
};
AddedLayerNorm add_layer_norm(const Tensor& x, const Tensor& added, const Tensor& weight, const Tensor& bias,
                              double eps);
struct LayerNormGrads {
  Tensor dx, dweight, dbias;
};
LayerNormGrads layer_norm_backward(const Tensor& dy, const Tensor& x, const Tensor& weight, const Tensor& mean,
                                   const Tensor& inv_std, const Tensor& dsum = {});

// Over the last dimension no copy is made. Over another dimension x is copied unless it is row-major. An element of -inf gets 0. A row with
// only -inf gives zeros (-inf as logarithms), where PyTorch gives NaN. A NaN makes its whole row NaN; +inf gives NaN for that element.
Tensor softmax(const Tensor& x, int64_t dim = -1);
Tensor softmax_backward(const Tensor& dy, const Tensor& y, int64_t dim = -1);
Tensor log_softmax(const Tensor& x, int64_t dim = -1);  // accurate for large x too: (x - max) - log(sum(exp(x - max)))
Tensor log_softmax_backward(const Tensor& dy, const Tensor& y, int64_t dim = -1);
Tensor logsumexp(const Tensor& x, int64_t dim = -1);  // without that dimension; f32 for bf16; a row of -inf gives -inf
Tensor logsumexp_backward(const Tensor& dl, const Tensor& x, const Tensor& l, int64_t dim = -1);

}  // namespace weft::ops
