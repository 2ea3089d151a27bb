// Tensor: memory with a shape, without a graph or gradients. It is a handle: copies of it share the memory, and so do views.
//   Tensor x = Tensor::zeros({2, 3});
//   Tensor row = x.slice(0, 1, 2);            // [1, 3], same memory
// Not for differentiation: that is Var (weft/autograd/var.h). Arithmetic is in weft/ops/.
#pragma once

#include <initializer_list>
#include <memory>
#include <source_location>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "weft/core/allocator.h"
#include "weft/core/device.h"
#include "weft/core/dtype.h"
#include "weft/core/shape.h"

namespace weft {

class Tensor {
 public:
  Tensor() = default;  // undefined
  Tensor(const Tensor& other) : Tensor(other, other.storage_) {}
  Tensor(Tensor&& other) noexcept;
  Tensor& operator=(const Tensor& other);
  Tensor& operator=(Tensor&& other) noexcept;
  ~Tensor() {
    if (storage_) storage_->release();
  }

  // New row-major tensors. empty() is uninitialised. If memory runs out, the Error names the place `caller`.
  static Tensor empty(const Shape& shape, DType dtype = kF32, Device device = default_device(),
                      std::source_location caller = std::source_location::current());
  static Tensor zeros(const Shape& shape, DType dtype = kF32, Device device = default_device(),
                      std::source_location caller = std::source_location::current());
  static Tensor full(const Shape& shape, double value, DType dtype = kF32, Device device = default_device(),
                     std::source_location caller = std::source_location::current());
  static Tensor arange(int64_t n, DType dtype = kI64);  // 0 .. n-1 on the CPU
  template <class T>
  static Tensor from(std::span<const T> values, const Shape& shape);  // copies, CPU
  template <class T>
  static Tensor from(std::initializer_list<T> values, const Shape& shape) {
    return from(std::span<const T>(values.begin(), values.size()), shape);
  }
  // Uses memory of others. `keep_alive` is held until the last view is gone. Do not write to the tensor if the memory is read-only.
  static Tensor borrow(void* data, const Shape& shape, DType dtype, std::shared_ptr<void> keep_alive);

  bool defined() const { return storage_ != nullptr; }
  const Shape& shape() const { return shape_; }
  const Shape& strides() const { return strides_; }  // in elements
  int num_dims() const { return shape_.num_dims(); }
  int64_t size(int64_t dim) const;  // negative: from the back
  int64_t num_elements() const { return num_elements_; }
  size_t num_bytes() const { return static_cast<size_t>(num_elements_) * size_of(dtype_); }
  DType dtype() const { return dtype_; }
  Device device() const { return storage_ ? storage_->device : Device::cpu(); }
  bool is_cuda() const { return device().is_cuda(); }
  bool is_contiguous() const { return is_contiguous_; }

  // Element access. data() is for reading. mutable_data() is for writing: it counts as a write, which autograd checks.
  template <class T>
  const T* data() const {
    check_type(dtype_of<T>());
    return static_cast<const T*>(raw());
  }
  template <class T>
  T* mutable_data() {
    check_type(dtype_of<T>());
    return static_cast<T*>(mutable_raw());
  }
  const void* raw() const { return storage_ ? static_cast<const char*>(storage_->data) + offset_bytes() : nullptr; }
  void* mutable_raw();
  double item() const;  // the one element, any dtype; waits for a device
  template <class T>
  std::vector<T> to_vector() const;    // elements in row-major order, any strides; waits for a device
  Tensor cpu() const;                  // itself if on the CPU, else a copy with the same strides; waits for the device
  void set_bytes(const Tensor& from);  // of the same shape and dtype, both row-major; on any devices
  uint64_t version() const { return storage_ ? storage_->version.load(std::memory_order_relaxed) : 0; }
  bool is_unshared() const { return storage_ && storage_->references.load(std::memory_order_acquire) == 1; }
  bool shares_memory_with(const Tensor& other) const { return storage_ && storage_ == other.storage_; }

  // Views: same memory, no copy. reshape() is an Error if the strides do not allow a view (call ops::contiguous first).
  Tensor reshape(const Shape& shape) const;  // one size may be -1
  Tensor permute(std::initializer_list<int> order) const;
  Tensor transpose(int64_t dim_a, int64_t dim_b) const;
  Tensor slice(int64_t dim, int64_t begin, int64_t end, int64_t step = 1) const;  // begin, end may be negative
  Tensor select(int64_t dim, int64_t index) const;                                // one index, without that dimension
  Tensor expand(const Shape& shape) const;                                        // sizes of 1 repeat with stride 0
  Tensor unsqueeze(int64_t dim) const;
  Tensor squeeze(int64_t dim) const;
  Tensor as_strided(const Shape& shape, const Shape& strides, int64_t offset) const;  // may overlap: not checked

 private:
  Tensor(const Tensor& other, Storage* storage);
  Tensor view(const Shape& shape, const Shape& strides, int64_t offset) const;
  void check_type(DType asked) const;
  size_t offset_bytes() const { return static_cast<size_t>(offset_) * size_of(dtype_); }

  Storage* storage_ = nullptr;
  int64_t offset_ = 0;  // elements
  int64_t num_elements_ = 0;
  Shape shape_, strides_;
  DType dtype_ = kF32;
  bool is_contiguous_ = true;
};

std::string to_string(const Tensor& t);                            // "[8, 512, 768] f32 cpu": what error texts print
std::string describe(const Tensor& t, int64_t max_elements = 64);  // the values too, for people

}  // namespace weft
