// Sizes or strides of a tensor: up to kMaxDims numbers, stored inline.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>

namespace weft {

inline constexpr int kMaxDims = 8;

class Shape {
 public:
  Shape() = default;
  Shape(std::initializer_list<int64_t> sizes) : Shape(std::span<const int64_t>(sizes.begin(), sizes.size())) {}
  explicit Shape(std::span<const int64_t> sizes);

  int num_dims() const { return num_dims_; }
  bool empty() const { return num_dims_ == 0; }
  int64_t operator[](int dim) const { return sizes_[static_cast<size_t>(dim)]; }  // 0 <= dim < num_dims(), unchecked
  int64_t& operator[](int dim) { return sizes_[static_cast<size_t>(dim)]; }
  int64_t back() const { return sizes_[static_cast<size_t>(num_dims_ - 1)]; }
  const int64_t* begin() const { return sizes_.data(); }
  const int64_t* end() const { return sizes_.data() + num_dims_; }
  std::span<const int64_t> span() const { return {begin(), static_cast<size_t>(num_dims_)}; }

  void push_back(int64_t size);
  void insert(int dim, int64_t size);
  void erase(int dim);
  int64_t num_elements() const;  // product; Error on negative sizes or overflow

  friend bool operator==(const Shape& a, const Shape& b) {
    if (a.num_dims_ != b.num_dims_) return false;
    for (int i = 0; i < a.num_dims_; ++i)
      if (a[i] != b[i]) return false;
    return true;
  }

 private:
  std::array<int64_t, kMaxDims> sizes_{};
  int num_dims_ = 0;
};

std::string to_string(const Shape& shape);     // "[8, 512, 768]"
Shape contiguous_strides(const Shape& sizes);  // row-major, in elements
// Shape of an elementwise result: aligned at the last dimension, sizes are equal or one of them is 1. Otherwise an Error that begins with
// `op`.
Shape broadcast_shapes(const Shape& a, const Shape& b, std::string_view op);
// Counts a negative dimension from the back. Error that names `op` if there is no such dimension.
int wrap_dim(int64_t dim, int num_dims, std::string_view op);

}  // namespace weft
