// Copies, conversions, ops in place and random values: the second half of weft/ops/elementwise.h.
#include "ops/cpu/copy.h"

#include <algorithm>

#include "ops/cpu/elementwise.h"
#include "ops/cpu/random.h"
#include "ops/cuda/elementwise.h"
#include "src/core/cuda_build.h"
#include "weft/core/error.h"
#include "weft/core/rng.h"
#include "weft/ops/elementwise.h"

namespace weft::ops {

namespace {

struct Range {
  const char *low, *high;
};
Range memory_of(const Tensor& t) {
  int64_t low = 0, high = 1, bytes = static_cast<int64_t>(size_of(t.dtype()));
  for (int d = 0; d < t.num_dims(); ++d) (t.strides()[d] < 0 ? low : high) += t.strides()[d] * (t.shape()[d] - 1);
  const char* base = static_cast<const char*>(t.raw());
  return {base + low * bytes, base + high * bytes};
}

// True if writing `to` element by element could change elements of `from` that are still to be read.
bool is_overwritten(const Tensor& from, const Tensor& to) {
  if (!to.shares_memory_with(from) || to.num_elements() == 0 || from.num_elements() == 0) return false;
  bool is_same_view = to.raw() == from.raw() && to.shape() == from.shape() && to.strides() == from.strides();
  if (is_same_view && to.dtype() == from.dtype()) return false;
  Range a = memory_of(to), b = memory_of(from);
  return a.low < b.high && b.low < a.high;
}

void check_in_place(const Tensor& to, const Tensor& from, std::string_view op) {
  WEFT_CHECK(to.defined() && from.defined(), str(op, ": to is ", to, ", from is ", from), "give defined tensors");
  bool fits = from.shape() == to.shape() || broadcast_shapes(to.shape(), from.shape(), op) == to.shape();
  WEFT_CHECK(fits, str(op, ": to is ", to, ", from is ", from), "the shape of `from` must broadcast to that of `to`");
  for (int d = 0; d < to.num_dims(); ++d)
    WEFT_CHECK(to.strides()[d] != 0 || to.shape()[d] <= 1, str(op, ": to is ", to, ", an expanded view"),
               "write to a tensor of its own memory: take ops::clone of it");
}

void check_writable(const Tensor& x, std::string_view op) { check_in_place(x, x, op); }

}  // namespace

Tensor cast(const Tensor& x, DType dtype) {
  WEFT_CHECK(x.defined(), "cast: x is undefined", "give a defined tensor");
  if (x.dtype() == dtype) return x;
  Tensor y = Tensor::empty(x.shape(), dtype, x.device());
  copy_(y, x);
  return y;
}

Tensor to(const Tensor& x, Device device) {
  WEFT_CHECK(x.defined(), "to: x is undefined", "give a defined tensor");
  if (x.device() == device) return x;
  Tensor y = Tensor::empty(x.shape(), x.dtype(), device);
  copy_(y, x);
  return y;
}

Tensor contiguous(const Tensor& x) { return x.is_contiguous() ? x : clone(x); }

Tensor clone(const Tensor& x) {
  WEFT_CHECK(x.defined(), "clone: x is undefined", "give a defined tensor");
  Tensor y = Tensor::empty(x.shape(), x.dtype(), x.device());
  copy_(y, x);
  return y;
}

void copy_(Tensor& to, const Tensor& from) {
  check_in_place(to, from, "copy_");
  if (is_overwritten(from, to)) return copy_(to, clone(from));
  if constexpr (kCuda) {
    if (to.is_cuda() || from.is_cuda()) return cuda::copy(to, from);
  }
  cpu::copy(to, from);
}

void fill_(Tensor& x, double value) {
  check_writable(x, "fill_");
  if constexpr (kCuda) {
    if (x.is_cuda()) return cuda::fill(x, value);
  }
  cpu::fill(x, value);
}

void add_(Tensor& to, const Tensor& from, double factor) {
  check_in_place(to, from, "add_");
  bool has_kernel =
      is_floating(to.dtype()) && (from.dtype() == to.dtype() || (to.dtype() == kF32 && from.dtype() == kBF16));
  WEFT_CHECK(has_kernel && to.device() == from.device(), str("add_: to is ", to, ", from is ", from),
             "use one floating dtype and device for both; only bf16 may be added to f32");
  if (is_overwritten(from, to)) return add_(to, clone(from), factor);
  if constexpr (kCuda) {
    if (to.is_cuda()) return cuda::scaled_add(to, from, factor);
  }
  cpu::scaled_add(to, from, factor);
}

void scale_(Tensor& x, double factor) {
  check_writable(x, "scale_");
  WEFT_CHECK(is_floating(x.dtype()), str("scale_: x is ", x), "use a tensor of dtype f32, bf16 or f64");
  if constexpr (kCuda) {
    if (x.is_cuda()) return cuda::scale(x, factor);
  }
  cpu::scale(x, factor);
}

void fill_normal_(Tensor& x, Rng rng, double mean, double std) {
  check_writable(x, "fill_normal_");
  WEFT_CHECK(is_floating(x.dtype()) && std >= 0, str("fill_normal_: x is ", x, ", std ", std),
             "use a tensor of dtype f32, bf16 or f64 and a standard deviation that is not negative");
  if constexpr (kCuda) {
    if (x.is_cuda()) return cuda::fill_normal(x, rng, mean, std);
  }
  cpu::fill_normal(x, rng, mean, std);
}

void fill_uniform_(Tensor& x, Rng rng, double low, double high) {
  check_writable(x, "fill_uniform_");
  WEFT_CHECK(is_floating(x.dtype()) && low <= high, str("fill_uniform_: x is ", x, ", low ", low, ", high ", high),
             "use a tensor of dtype f32, bf16 or f64 and low <= high");
  if constexpr (kCuda) {
    if (x.is_cuda()) return cuda::fill_uniform(x, rng, low, high);
  }
  cpu::fill_uniform(x, rng, low, high);
}

Tensor dropout(const Tensor& x_BTD, const Tensor& positions_BT, double p, Rng rng, int64_t first_row) {
  WEFT_CHECK(x_BTD.defined() && is_floating(x_BTD.dtype()) && x_BTD.num_dims() == 3, str("dropout: x is ", x_BTD),
             "x must be [batch, tokens, dim] of dtype f32, bf16 or f64");
  WEFT_CHECK(positions_BT.dtype() == kI32 && positions_BT.device() == x_BTD.device() &&
                 positions_BT.shape() == Shape({x_BTD.size(0), x_BTD.size(1)}),
             str("dropout: x is ", x_BTD, ", positions are ", positions_BT), "positions must be [batch, tokens] i32");
  WEFT_CHECK(p >= 0 && p < 1, str("dropout: p is ", p), "use 0 <= p < 1");
  WEFT_CHECK(first_row >= 0, str("dropout: first_row is ", first_row), "use the global index of row 0");
  Tensor y = Tensor::empty(x_BTD.shape(), x_BTD.dtype(), x_BTD.device());
  if constexpr (kCuda) {
    if (y.is_cuda()) return cuda::dropout(y, x_BTD, positions_BT, p, rng, first_row), y;
  }
  cpu::dropout(y, contiguous(x_BTD), contiguous(positions_BT), p, rng, first_row);
  return y;
}

}  // namespace weft::ops
