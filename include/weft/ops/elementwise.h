// Elementwise ops on f32, bf16 (computed in f32, rounded once) and f64, with broadcasting where two tensors meet.
// Inputs may have any strides; results are fresh and row-major. f_backward(dy, kept) returns dx.
#pragma once

#include <utility>

#include "weft/core/tensor.h"

namespace weft {
class Rng;
}

namespace weft::ops {

// Two tensors of one dtype, broadcast against each other.
Tensor add(const Tensor& a, const Tensor& b);
Tensor sub(const Tensor& a, const Tensor& b);
Tensor mul(const Tensor& a, const Tensor& b);
Tensor div(const Tensor& a, const Tensor& b);
Tensor maximum(const Tensor& a, const Tensor& b);
Tensor minimum(const Tensor& a, const Tensor& b);
Tensor pow(const Tensor& a, const Tensor& b);        // a^b, floating only; conventions at pow_backward
Tensor sum_to(const Tensor& x, const Shape& shape);  // sums what broadcasting repeated: its backward

// Comparisons: bool results, two tensors of one dtype with broadcasting, or a tensor and a number. A floating x is compared with the number
// rounded to its dtype, an integer x with the number itself (2 < 2.5). A NaN is not equal to anything; all other comparisons with it are
// false.
Tensor equal(const Tensor& a, const Tensor& b);
Tensor not_equal(const Tensor& a, const Tensor& b);
Tensor less(const Tensor& a, const Tensor& b);
Tensor less_equal(const Tensor& a, const Tensor& b);
Tensor greater(const Tensor& a, const Tensor& b);
Tensor greater_equal(const Tensor& a, const Tensor& b);
Tensor equal(const Tensor& x, double number);
Tensor not_equal(const Tensor& x, double number);
Tensor less(const Tensor& x, double number);
Tensor less_equal(const Tensor& x, double number);
Tensor greater(const Tensor& x, double number);
Tensor greater_equal(const Tensor& x, double number);
// Of bools, with broadcasting.
Tensor logical_and(const Tensor& a, const Tensor& b);
Tensor logical_or(const Tensor& a, const Tensor& b);
Tensor logical_xor(const Tensor& a, const Tensor& b);
Tensor logical_not(const Tensor& x);
// The first where the bool mask is true, else the second; all are broadcast. A number is converted to x's dtype. Error if an integer or bool
// dtype cannot hold it, or if a finite number becomes infinite.
Tensor where(const Tensor& mask, const Tensor& a, const Tensor& b);
Tensor where(const Tensor& mask, const Tensor& x, double number);
Tensor where(const Tensor& mask, double number, const Tensor& x);

// A tensor and a number.
Tensor scale(const Tensor& x, double factor);
Tensor add_scalar(const Tensor& x, double number);
// min(max(x, low), high), also for integers. A bound may be infinite. NaN stays NaN. Error if low > high or a bound is NaN.
Tensor clamp(const Tensor& x, double low, double high);
Tensor clamp_backward(const Tensor& dy, const Tensor& x, double low, double high);  // dy also on the bounds, else 0
Tensor pow(const Tensor& x, double exponent);
Tensor pow_backward(const Tensor& dy, const Tensor& x, double exponent);
struct PowGrads {
  Tensor da, db;  // undefined if not wanted
};
// As in PyTorch: x^0 is 1 even for NaN, with gradient 0; a negative number to a power that is not whole is NaN. The exponent's
// gradient is 0 at 0^b with b >= 0, and NaN where a is negative.
PowGrads pow_backward(const Tensor& dy, const Tensor& a, const Tensor& b, bool wants_da = true, bool wants_db = true);

// One tensor. The comment names what the backward keeps.
Tensor neg(const Tensor& x);
Tensor abs(const Tensor& x);
Tensor square(const Tensor& x);
Tensor sqrt(const Tensor& x);
Tensor rsqrt(const Tensor& x);
Tensor exp(const Tensor& x);
Tensor log(const Tensor& x);
Tensor sin(const Tensor& x);
Tensor cos(const Tensor& x);
Tensor tanh(const Tensor& x);
Tensor sigmoid(const Tensor& x);
Tensor log_sigmoid(const Tensor& x);
Tensor softplus(const Tensor& x);
Tensor relu(const Tensor& x);
Tensor elu(const Tensor& x);  // alpha = 1
Tensor silu(const Tensor& x);
Tensor gelu(const Tensor& x);                 // exact: x * Phi(x)
Tensor gelu_tanh(const Tensor& x);            // the tanh form of GPT-2
Tensor softcap(const Tensor& x, double cap);  // cap * tanh(x / cap)

Tensor abs_backward(const Tensor& dy, const Tensor& x);
Tensor square_backward(const Tensor& dy, const Tensor& x);
Tensor sqrt_backward(const Tensor& dy, const Tensor& y);
Tensor rsqrt_backward(const Tensor& dy, const Tensor& y);
Tensor exp_backward(const Tensor& dy, const Tensor& y);
Tensor log_backward(const Tensor& dy, const Tensor& x);
Tensor sin_backward(const Tensor& dy, const Tensor& x);
Tensor cos_backward(const Tensor& dy, const Tensor& x);
Tensor tanh_backward(const Tensor& dy, const Tensor& y);
Tensor sigmoid_backward(const Tensor& dy, const Tensor& y);
Tensor log_sigmoid_backward(const Tensor& dy, const Tensor& x);
Tensor softplus_backward(const Tensor& dy, const Tensor& x);
Tensor relu_backward(const Tensor& dy, const Tensor& y);
Tensor elu_backward(const Tensor& dy, const Tensor& y);
Tensor silu_backward(const Tensor& dy, const Tensor& x);
Tensor gelu_backward(const Tensor& dy, const Tensor& x);
Tensor gelu_tanh_backward(const Tensor& dy, const Tensor& x);
Tensor softcap_backward(const Tensor& dy, const Tensor& y, double cap);

// silu(gate) * up, and both gradients in one pass.
Tensor swiglu(const Tensor& gate, const Tensor& up);
std::pair<Tensor, Tensor> swiglu_backward(const Tensor& dy, const Tensor& gate, const Tensor& up);  // dgate, dup

// The loss of each element, for two tensors of one shape. BCE: target * softplus(-logits) + (1 - target) * softplus(logits). It is finite for
// every finite logit, and 0 for an infinite logit of the target's sign.
Tensor squared_error(const Tensor& x, const Tensor& target);
Tensor bce_with_logits(const Tensor& logits, const Tensor& target);
Tensor bce_with_logits_backward(const Tensor& dlosses, const Tensor& logits, const Tensor& target);

// Copies and conversions between any two dtypes.
Tensor cast(const Tensor& x, DType dtype);   // x itself if it has that dtype
Tensor to(const Tensor& x, Device device);   // x itself if it is there
Tensor contiguous(const Tensor& x);          // x itself if it is row-major
Tensor clone(const Tensor& x);               // always a fresh row-major copy
void copy_(Tensor& to, const Tensor& from);  // converts, broadcasts `from`
void fill_(Tensor& x, double value);
void add_(Tensor& to, const Tensor& from, double factor = 1);  // to += factor * from; `from` may be bf16 and `to` f32
void scale_(Tensor& x, double factor);

// Random values that depend on (rng, element index in row-major order) only.
void fill_normal_(Tensor& x, Rng rng, double mean, double std);
void fill_uniform_(Tensor& x, Rng rng, double low, double high);
// Dropout: x * keep / (1 - p), where keep is 0 or 1, drawn from (row index, position, channel). x is [B, T, D], positions [B, T] i32.
// The backward is the same call on dy.
Tensor dropout(const Tensor& x_BTD, const Tensor& positions_BT, double p, Rng rng, int64_t first_row = 0);

}  // namespace weft::ops
