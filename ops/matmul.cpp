#include "weft/ops/matmul.h"

#include <algorithm>

#include "ops/cpu/elementwise.h"
#include "ops/cpu/matmul.h"
#include "ops/cuda/matmul.h"
#include "src/core/cuda_build.h"
#include "weft/core/error.h"
#include "weft/core/profile.h"
#include "weft/ops/elementwise.h"
#include "weft/ops/reduce.h"

namespace weft::ops {

namespace {

Tensor last_two_swapped(const Tensor& x, bool swap) { return swap ? x.transpose(-1, -2) : x; }

std::string both(std::string_view op, std::string_view problem, const Tensor& a, const Tensor& b) {
  return str(op, ": ", problem, ": a is ", a, ", b is ", b);
}

void check_pair(std::string_view op, const Tensor& a, const Tensor& b) {
  WEFT_CHECK(a.defined() && b.defined(), both(op, "an input is undefined", a, b), "give two tensors");
  WEFT_CHECK(a.dtype() == b.dtype(), both(op, "dtypes differ", a, b), "cast one to the dtype of the other");
  WEFT_CHECK(is_floating(a.dtype()), both(op, "not a floating dtype", a, b), "cast both to f32, bf16 or f64");
  WEFT_CHECK(a.device() == b.device(), both(op, "devices differ", a, b), "move one to the device of the other");
}

// Shape of the product of a and b, whose transposes are already applied; the texts show them as they were given.
Shape product_shape(std::string_view op, const Tensor& a, const Tensor& b, const Tensor& given_a,
                    const Tensor& given_b) {
  int64_t inner_a = a.size(-1), inner_b = b.size(-2);
  WEFT_CHECK(inner_a == inner_b, both(op, "inner sizes differ", given_a, given_b),
             str("the last size of a (", inner_a, ") must equal the second-last of b (", inner_b, "); transpose b?"));
  Shape lead_a(a.shape().span().first(static_cast<size_t>(a.num_dims() - 2)));
  Shape lead_b(b.shape().span().first(static_cast<size_t>(b.num_dims() - 2)));
  for (int i = 1; i <= std::min(lead_a.num_dims(), lead_b.num_dims()); ++i) {
    int64_t x = lead_a[lead_a.num_dims() - i], y = lead_b[lead_b.num_dims() - i];
    WEFT_CHECK(x == y || x == 1 || y == 1, both(op, "leading sizes do not broadcast", given_a, given_b),
               str("make the leading sizes ", lead_a, " and ", lead_b, " equal, or 1, counted from the last"));
  }
  Shape shape = broadcast_shapes(lead_a, lead_b, op);
  WEFT_CHECK(shape.num_dims() <= kMaxDims - 2, both(op, "too many dimensions", given_a, given_b),
             str("use at most ", kMaxDims));
  shape.push_back(a.size(-2));
  shape.push_back(b.size(-1));
  return shape;
}

void check_matrices(std::string_view op, const Tensor& a, const Tensor& b) {
  WEFT_CHECK(a.num_dims() >= 2 && b.num_dims() >= 2, both(op, "an input has fewer than two dimensions", a, b),
             "give matrices; unsqueeze a vector");
}

void run(Tensor& out, const Tensor& a, const Tensor& b, const Tensor& bias, double beta) {
  ProfileRange range("matmul");
  if constexpr (kCuda) {
    if (a.is_cuda()) return cuda::matmul(out, a, b, bias, beta);
  }
  cpu::matmul(out, a, b, bias, beta);
}

// Whether two tensors may have an element in common: the ranges of memory that their views span meet.
bool overlap(const Tensor& x, const Tensor& y) {
  if (!x.shares_memory_with(y) || !x.num_elements() || !y.num_elements()) return false;
  auto range = [](const Tensor& t) {
    int64_t low = 0, high = 0;
    for (int i = 0; i < t.num_dims(); ++i) (t.strides()[i] < 0 ? low : high) += t.strides()[i] * (t.shape()[i] - 1);
    auto step = static_cast<int64_t>(size_of(t.dtype()));
    const char* base = static_cast<const char*>(t.raw());
    return std::pair(base + low * step, base + (high + 1) * step);
  };
  auto [x_begin, x_end] = range(x);
  auto [y_begin, y_end] = range(y);
  return x_begin < y_end && y_begin < x_end;
}

}  // namespace

Tensor matmul(const Tensor& a, const Tensor& b, MatmulOptions options) {
  check_pair("matmul", a, b);
  check_matrices("matmul", a, b);
  DType dtype = options.out.value_or(a.dtype());
  WEFT_CHECK(dtype == a.dtype() || (dtype == kF32 && a.dtype() == kBF16),
             str(both("matmul", "unsupported result dtype", a, b), ", out is ", dtype),
             "leave `out` away; only bf16 inputs may give another dtype, f32");
  Tensor left = last_two_swapped(a, options.transpose_a), right = last_two_swapped(b, options.transpose_b);
  Tensor out = Tensor::empty(product_shape("matmul", left, right, a, b), dtype, a.device());
  run(out, left, right, {}, 0);
  return out;
}

void matmul_into(Tensor& out, const Tensor& a, const Tensor& b, MatmulOptions options, double beta) {
  check_pair("matmul_into", a, b);
  check_matrices("matmul_into", a, b);
  auto with_out = [&](std::string_view problem) { return str(both("matmul_into", problem, a, b), ", out is ", out); };
  DType dtype = a.dtype() == kF64 ? kF64 : kF32;
  WEFT_CHECK(out.defined() && out.dtype() == dtype && options.out.value_or(dtype) == dtype,
             with_out("wrong result dtype"), str("give an out of dtype ", dtype));
  WEFT_CHECK(out.device() == a.device(), with_out("devices differ"), "keep out on the device of a and b");
  Tensor left = last_two_swapped(a, options.transpose_a), right = last_two_swapped(b, options.transpose_b);
  Shape shape = product_shape("matmul_into", left, right, a, b);
  WEFT_CHECK(out.shape() == shape && out.is_contiguous(), with_out("out does not fit"),
             str("give a row-major out of shape ", shape));
  WEFT_CHECK(!overlap(out, a) && !overlap(out, b), with_out("out overlaps an input"),
             "give an out with memory of its own");
  run(out, left, right, {}, beta);
}

namespace {

// The shape of linear's result, or an Error.
Shape linear_shape(std::string_view op, const Tensor& x, const Tensor& weight, const Tensor& bias) {
  auto all = [&](std::string_view problem) {
    return str(op, ": ", problem, ": x is ", x, ", weight is ", weight, ", bias is ", bias);
  };
  WEFT_CHECK(x.defined() && weight.defined(), all("an input is undefined"), "give x and a weight");
  WEFT_CHECK(x.num_dims() >= 1 && weight.num_dims() == 2, all("wrong number of dimensions"),
             "give x [..., in] and a weight [out, in]");
  WEFT_CHECK(x.dtype() == weight.dtype() && (!bias.defined() || bias.dtype() == x.dtype()), all("dtypes differ"),
             "cast all to one dtype");
  WEFT_CHECK(is_floating(x.dtype()), all("not a floating dtype"), "cast all to f32, bf16 or f64");
  WEFT_CHECK(x.device() == weight.device() && (!bias.defined() || bias.device() == x.device()), all("devices differ"),
             "move all to one device");
  int64_t in = weight.size(1), out = weight.size(0);
  WEFT_CHECK(x.size(-1) == in, all("inner sizes differ"),
             str("the last size of x (", x.size(-1), ") must equal the last of weight (", in, ")"));
  WEFT_CHECK(!bias.defined() || bias.shape() == Shape{out}, all("bias does not fit"),
             str("give a bias of shape [", out, "]"));
  WEFT_CHECK(!bias.defined() || bias.is_contiguous(), all("bias is strided"), "give a row-major bias");

  Shape shape = x.shape();
  shape[shape.num_dims() - 1] = out;
  return shape;
}

}  // namespace

Tensor linear(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  Tensor y = Tensor::empty(linear_shape("linear", x, weight, bias), x.dtype(), x.device());
  if (x.num_dims() >= 2) {
    run(y, x, weight.transpose(0, 1), bias, 0);
  } else {
    Tensor row = y.unsqueeze(0);
    run(row, x.unsqueeze(0), weight.transpose(0, 1), bias, 0);
  }
  return y;
}

// Whether a LinearGelu holds gelu_tanh's slopes: their sigmoid is then computed once. Rounded to bf16 they would change the gradient.
static bool keeps_slope(const Tensor& x) { return !x.is_cuda() && x.dtype() != kBF16; }

LinearGelu linear_gelu(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  if constexpr (kCuda) {
    if (x.defined() && x.is_cuda()) {
      Shape shape = linear_shape("linear_gelu", x, weight, bias);
      LinearGelu result{Tensor::empty(shape, x.dtype(), x.device()), Tensor::empty(shape, x.dtype(), x.device())};
      if (cuda::linear_gelu(result.y, result.inner, x, weight.transpose(0, 1), bias)) return result;
    }
  }
  Tensor inner = linear(x, weight, bias);
  if (!keeps_slope(inner)) return {gelu_tanh(inner), inner};
  Tensor y = Tensor::empty(inner.shape(), inner.dtype(), inner.device());
  cpu::gelu_tanh_both(y, inner);
  return {y, inner};
}

Tensor linear_gelu_backward(const Tensor& dy, const Tensor& weight, const Tensor& inner) {
  check_pair("linear_gelu_backward", dy, weight);
  check_matrices("linear_gelu_backward", dy, weight);
  Shape shape = product_shape("linear_gelu_backward", dy, weight, dy, weight);
  WEFT_CHECK(inner.defined() && inner.shape() == shape && inner.dtype() == dy.dtype() && inner.is_contiguous() &&
                 inner.device() == dy.device(),
             str(both("linear_gelu_backward", "inner does not fit", dy, weight), ", inner is ", inner),
             str("give a row-major ", dy.dtype(), " tensor of shape ", shape, " on their device"));
  if constexpr (kCuda) {
    if (dy.is_cuda()) {
      Tensor result = Tensor::empty(shape, dy.dtype(), dy.device());
      if (cuda::matmul_gelu_backward(result, dy, weight, inner)) return result;
    }
  }
  return keeps_slope(inner) ? mul(matmul(dy, weight), inner) : gelu_tanh_backward(matmul(dy, weight), inner);
}

LinearGrads linear_backward(const Tensor& dy, const Tensor& x, bool has_bias) {
  check_pair("linear_backward", dy, x);
  WEFT_CHECK(dy.num_dims() == 2 && x.num_dims() == 2 && dy.size(0) == x.size(0),
             both("linear_backward", "rows do not fit", dy, x), "give dy [N, out] and x [N, in]");
  const DType dtype = dy.dtype() == kF64 ? kF64 : kF32;
  if constexpr (kCuda) {
    if (has_bias && dy.is_cuda()) {
      LinearGrads grads{Tensor::empty({dy.size(1), x.size(1)}, dtype, dy.device()),
                        Tensor::empty({dy.size(1)}, dtype, dy.device())};
      if (cuda::matmul_row_sums(grads.dweight, grads.dbias, dy.transpose(0, 1), x)) return grads;
    }
  }
  LinearGrads grads{matmul(dy, x, {.transpose_a = true, .out = dtype}), {}};
  if (has_bias) grads.dbias = sum(cast(dy, dtype), 0);
  return grads;
}

}  // namespace weft::ops
