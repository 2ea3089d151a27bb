// Differentiable functions. Each is the op of the same name in weft/ops/ with its backward; shapes and errors are said there.
#pragma once

#include <array>
#include <span>
#include <vector>

#include "weft/autograd/compare.h"
#include "weft/autograd/loss.h"
#include "weft/autograd/norm.h"
#include "weft/autograd/var.h"
#include "weft/ops/attention.h"
#include "weft/ops/matmul.h"
#include "weft/ops/reduce.h"
#include "weft/ops/sequence.h"

namespace weft {

// elementwise.cpp
Var add(const Var& a, const Var& b);
Var sub(const Var& a, const Var& b);
Var mul(const Var& a, const Var& b);
Var div(const Var& a, const Var& b);
Var maximum(const Var& a, const Var& b);  // at a tie either gets half of the gradient
Var minimum(const Var& a, const Var& b);
Var pow(const Var& a, const Var& b);  // conventions of ops::pow_backward
Var scale(const Var& x, double factor);
Var add_scalar(const Var& x, double number);
Var pow(const Var& x, double exponent);
Var clamp(const Var& x, double low,
          double high);  // a bound may be infinite; on a bound the gradient passes, as in PyTorch
Var clamp_min(const Var& x, double low);
Var clamp_max(const Var& x, double high);
inline Var maximum(const Var& x, double number) { return clamp_min(x, number); }
inline Var minimum(const Var& x, double number) { return clamp_max(x, number); }
Var divide_number(double number, const Var& x);
inline Var operator+(const Var& a, const Var& b) { return add(a, b); }
inline Var operator-(const Var& a, const Var& b) { return sub(a, b); }
inline Var operator*(const Var& a, const Var& b) { return mul(a, b); }
inline Var operator/(const Var& a, const Var& b) { return div(a, b); }
inline Var operator*(const Var& x, double factor) { return scale(x, factor); }
inline Var operator*(double factor, const Var& x) { return scale(x, factor); }
inline Var operator+(const Var& x, double number) { return add_scalar(x, number); }
inline Var operator-(const Var& x, double number) { return add_scalar(x, -number); }
inline Var operator-(const Var& x) { return scale(x, -1); }
inline Var operator+(double number, const Var& x) { return add_scalar(x, number); }
inline Var operator-(double number, const Var& x) { return add_scalar(scale(x, -1), number); }
inline Var operator/(const Var& x, double number) { return scale(x, 1 / number); }
inline Var operator/(double number, const Var& x) { return divide_number(number, x); }
Var neg(const Var& x);
Var abs(const Var& x);
Var square(const Var& x);
Var sqrt(const Var& x);
Var rsqrt(const Var& x);
Var exp(const Var& x);
Var log(const Var& x);
Var sin(const Var& x);
Var cos(const Var& x);
Var tanh(const Var& x);
Var sigmoid(const Var& x);
Var log_sigmoid(const Var& x);
Var softplus(const Var& x);
Var relu(const Var& x);
Var elu(const Var& x);
Var silu(const Var& x);
Var gelu(const Var& x);
Var gelu_tanh(const Var& x);
Var softcap(const Var& x, double cap);
Var swiglu(const Var& gate, const Var& up);
Var cast(const Var& x, DType dtype);  // the gradient is cast back
Var to(const Var& x, Device device);  // a copy there, or x itself; the gradient comes back
Var dropout(const Var& x_BTD, const Tensor& positions_BT, double p, Rng rng, int64_t first_row = 0);

// Writes `from` (converted) into `to`, which must have its shape: for parameters and buffers, off the tape.
void assign(Tensor& to, const Tensor& from);

// view.cpp: no copies forward, except where the name says so
Var reshape(const Var& x, const Shape& shape);  // copies if the strides cannot be merged
Var permute(const Var& x, std::initializer_list<int> order);
Var transpose(const Var& x, int64_t dim_a, int64_t dim_b);
Var slice(const Var& x, int64_t dim, int64_t begin, int64_t end, int64_t step = 1);
Var select(const Var& x, int64_t dim, int64_t index);
Var expand(const Var& x, const Shape& shape);
Var unsqueeze(const Var& x, int64_t dim);
Var squeeze(const Var& x, int64_t dim);
std::vector<Var> split(const Var& x, std::span<const int64_t> sizes, int64_t dim);  // views; one join in backward
std::vector<Var> chunk(const Var& x, int64_t count,
                       int64_t dim);                       // of sizes that differ by at most one, larger ones first
Var concatenate(std::span<const Var> parts, int64_t dim);  // copies
Var stack(std::span<const Var> parts, int64_t dim);        // copies

// reduce.cpp
Var sum(const Var& x, std::span<const int> dims, bool keep_dims = false);
Var mean(const Var& x, std::span<const int> dims, bool keep_dims = false);
Var sum(const Var& x, int64_t dim, bool keep_dims = false);
Var mean(const Var& x, int64_t dim, bool keep_dims = false);
Var sum_all(const Var& x);
Var mean_all(const Var& x);
Var max(const Var& x, int64_t dim, bool keep_dims = false);  // the gradient goes to the lowest index of the maximum
Var min(const Var& x, int64_t dim, bool keep_dims = false);
// Sum of squared distances from the mean over n - correction (PyTorch's default is 1; a layer norm takes 0).
Var variance(const Var& x, int64_t dim, double correction, bool keep_dims = false);
Var norm(const Var& x, int64_t dim, bool keep_dims = false);  // sqrt(sum(x^2)); the gradient of a row of zeros is 0
Var cumsum(const Var& x, int64_t dim, ops::CumsumOptions options = {});

// matmul.cpp
Var matmul(const Var& a, const Var& b, ops::MatmulOptions options = {});
Var linear(const Var& x, const Var& weight, const Var& bias = {});
// linear(gelu_tanh(linear(x, up, up_bias)), down, down_bias), fused where the device can; biases may be undefined.
Var gelu_mlp(const Var& x, const Var& up, const Var& up_bias, const Var& down, const Var& down_bias);

// sequence.cpp
Var rotary(const Var& x_BTHK, const ops::RotaryTable& table);
Var causal_conv(const Var& x_BTD, const Var& weight_DW, const Var& bias_D, const Tensor& documents_BT);
// Biases of scores with gradients, each undefined or as in ops::AttentionScore.
struct AttentionBias {
  Var query = {};  // [B, T, H]
  Var key = {};    // [B, S, G] or [B, S, H]
};
// {out, lse}, both differentiable. lse is undefined for normalisers without one. A defined bias takes the place of the one in options.score.
std::array<Var, 2> attend(const Var& q_BTHK, const Var& k_BSGK, const Var& v_BSGV, const ops::AttentionTokens& queries,
                          const ops::AttentionTokens& keys, const ops::AttentionOptions& options,
                          const AttentionBias& bias = {});

// Without gradients, for layers: they reach ops through here.
ops::RotaryTable make_rotary_table(const Tensor& positions_BT, int64_t head_width, const ops::RotaryOptions& options);
ops::AttentionStatistics attention_statistics(const Var& q_BTHK, const Var& k_BSGK, const Var& lse_BTH,
                                              const ops::AttentionTokens& queries, const ops::AttentionTokens& keys,
                                              const ops::AttentionOptions& options);

// select.cpp
Var embedding(const Var& table, const Tensor& ids);
Var take_rows(const Var& x, const Tensor& rows);  // embedding() of activations: the gradient has x's dtype
Var gather(const Var& x, int64_t dim, const Tensor& index);
Var scatter_add(const Shape& shape, int64_t dim, const Tensor& index, const Var& x);
struct TopKVar {
  Var values;
  Tensor indices;
};
TopKVar topk(const Var& x, int64_t k);

}  // namespace weft
