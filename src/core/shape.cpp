#include "weft/core/shape.h"

#include <algorithm>

#include "weft/core/error.h"

namespace weft {

Shape::Shape(std::span<const int64_t> sizes) {
  WEFT_CHECK(sizes.size() <= static_cast<size_t>(kMaxDims), str("shape: ", sizes.size(), " dimensions"),
             str("use at most ", kMaxDims, " dimensions"));
  std::copy(sizes.begin(), sizes.end(), sizes_.begin());
  num_dims_ = static_cast<int>(sizes.size());
}

void Shape::push_back(int64_t size) { insert(num_dims_, size); }

void Shape::insert(int dim, int64_t size) {
  WEFT_CHECK(num_dims_ < kMaxDims, str("shape: ", *this, " has no room for another dimension"),
             str("use at most ", kMaxDims, " dimensions"));
  WEFT_ASSERT(0 <= dim && dim <= num_dims_);
  for (int i = num_dims_; i > dim; --i) sizes_[static_cast<size_t>(i)] = sizes_[static_cast<size_t>(i - 1)];
  sizes_[static_cast<size_t>(dim)] = size;
  ++num_dims_;
}

void Shape::erase(int dim) {
  WEFT_ASSERT(0 <= dim && dim < num_dims_);
  for (int i = dim; i + 1 < num_dims_; ++i) sizes_[static_cast<size_t>(i)] = sizes_[static_cast<size_t>(i + 1)];
  --num_dims_;
}

int64_t Shape::num_elements() const {
  int64_t product = 1;
  bool overflows = false, is_zero = false;
  for (int64_t size : *this) {
    WEFT_CHECK(size >= 0, str("shape: ", *this, " has a negative size"), "sizes must be 0 or more");
    is_zero |= size == 0;
    overflows |= __builtin_mul_overflow(product, size == 0 ? 1 : size, &product);
  }
  WEFT_CHECK(is_zero || !overflows, str("shape: ", *this, " has more than 2^63 elements"), "use smaller sizes");
  return is_zero ? 0 : product;
}

std::string to_string(const Shape& shape) {
  std::string text = "[";
  for (int i = 0; i < shape.num_dims(); ++i) text += str(i ? ", " : "", shape[i]);
  return text + "]";
}

Shape contiguous_strides(const Shape& sizes) {
  Shape strides = sizes;
  int64_t stride = 1;
  for (int i = sizes.num_dims() - 1; i >= 0; --i) {
    strides[i] = stride;
    // Wraps for shapes beyond 2^63, which num_elements() refuses or which have no element.
    (void)__builtin_mul_overflow(stride, std::max<int64_t>(sizes[i], 1), &stride);
  }
  return strides;
}

Shape broadcast_shapes(const Shape& a, const Shape& b, std::string_view op) {
  const Shape& longer = a.num_dims() >= b.num_dims() ? a : b;
  const Shape& shorter = a.num_dims() >= b.num_dims() ? b : a;
  Shape result = longer;
  int shift = longer.num_dims() - shorter.num_dims();
  for (int i = 0; i < shorter.num_dims(); ++i) {
    int64_t x = longer[i + shift], y = shorter[i];
    WEFT_CHECK(x == y || x == 1 || y == 1, str(op, ": shapes ", a, " and ", b, " do not broadcast"),
               "sizes must be equal or 1, counted from the last dimension");
    result[i + shift] = x == 1 ? y : x;
  }
  return result;
}

int wrap_dim(int64_t dim, int num_dims, std::string_view op) {
  WEFT_CHECK(-num_dims <= dim && dim < num_dims, str(op, ": dimension ", dim, " of a tensor with ", num_dims),
             str("use ", -num_dims, " .. ", num_dims - 1));
  return static_cast<int>(dim < 0 ? dim + num_dims : dim);
}

}  // namespace weft
