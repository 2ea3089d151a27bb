#include "weft/core/tensor.h"

#include <algorithm>
#include <cstring>

#include "weft/core/dry_run.h"
#include "weft/core/error.h"
#ifdef WEFT_WITH_CUDA
#include "src/core/cuda/problems.h"
#include "src/core/cuda/runtime.h"
#endif

namespace weft {

namespace {

bool strides_are_contiguous(const Shape& shape, const Shape& strides) {
  int64_t expected = 1;
  for (int i = shape.num_dims() - 1; i >= 0; --i) {
    if (shape[i] == 1) continue;
    if (shape[i] == 0) return true;
    if (strides[i] != expected) return false;
    expected *= shape[i];
  }
  return true;
}

// Calls f(byte offset) for each element in row-major order.
template <class F>
void for_each_offset(const Tensor& t, F&& f) {
  Shape index = t.shape();
  for (int i = 0; i < index.num_dims(); ++i) index[i] = 0;
  auto step = static_cast<int64_t>(size_of(t.dtype()));
  for (int64_t n = t.num_elements(), offset = 0; n > 0; --n) {
    f(offset * step);
    for (int i = t.num_dims() - 1; i >= 0; --i) {
      offset += t.strides()[i];
      if (++index[i] < t.shape()[i]) break;
      offset -= t.strides()[i] * t.shape()[i];
      index[i] = 0;
    }
  }
}

double element_as_double(const void* at, DType dtype) {
  double value = 0;
  with_type<float, BFloat16, double, int64_t, int32_t, uint8_t, bool>(dtype, "item", [&](auto tag) {
    using T = typename decltype(tag)::type;
    T x;
    std::memcpy(&x, at, sizeof x);
    if constexpr (std::same_as<T, BFloat16>) value = static_cast<float>(x);
    else value = static_cast<double>(x);
  });
  return value;
}

}  // namespace

Tensor::Tensor(const Tensor& other, Storage* storage)
    : storage_(storage),
      offset_(other.offset_),
      num_elements_(other.num_elements_),
      shape_(other.shape_),
      strides_(other.strides_),
      dtype_(other.dtype_),
      is_contiguous_(other.is_contiguous_) {
  if (storage_) storage_->retain();
}

Tensor::Tensor(Tensor&& other) noexcept
    : storage_(std::exchange(other.storage_, nullptr)),
      offset_(other.offset_),
      num_elements_(other.num_elements_),
      shape_(other.shape_),
      strides_(other.strides_),
      dtype_(other.dtype_),
      is_contiguous_(other.is_contiguous_) {}

Tensor& Tensor::operator=(const Tensor& other) { return *this = Tensor(other); }

Tensor& Tensor::operator=(Tensor&& other) noexcept {
  std::swap(storage_, other.storage_);
  offset_ = other.offset_;
  num_elements_ = other.num_elements_;
  shape_ = other.shape_;
  strides_ = other.strides_;
  dtype_ = other.dtype_;
  is_contiguous_ = other.is_contiguous_;
  if (this != &other && other.storage_) std::exchange(other.storage_, nullptr)->release();
  return *this;
}

Tensor Tensor::empty(const Shape& shape, DType dtype, Device device, std::source_location caller) {
  Tensor t;
  t.shape_ = shape;
  t.strides_ = contiguous_strides(shape);
  t.num_elements_ = shape.num_elements();
  t.dtype_ = dtype;
  WEFT_CHECK(t.num_elements_ <= (int64_t{1} << 60), str("tensor: ", shape, " ", dtype, " is too large"),
             "use smaller sizes");
  try {
    t.storage_ = allocator(device).allocate(t.num_bytes());
  } catch (const Error& error) { fail(str("tensor ", shape, " ", dtype, ": ", error.problem()), error.fix(), caller); }
#ifdef WEFT_WITH_CUDA
  if (device.is_cuda()) cuda::note_tensor(shape, dtype);
#endif
  return t;
}

#ifdef WEFT_WITH_CUDA
void cuda_fill(Tensor& t, double value);  // src/core/cuda/fill.cu
#endif

Tensor Tensor::zeros(const Shape& shape, DType dtype, Device device, std::source_location caller) {
  Tensor t = empty(shape, dtype, device, caller);
#ifdef WEFT_WITH_CUDA
  if (device.is_cuda()) return cuda_fill(t, 0), t;
#endif
  if (!is_dry_run()) std::memset(t.mutable_raw(), 0, t.num_bytes());
  return t;
}

Tensor Tensor::full(const Shape& shape, double value, DType dtype, Device device, std::source_location caller) {
  Tensor t = empty(shape, dtype, device, caller);
#ifdef WEFT_WITH_CUDA
  if (device.is_cuda()) return cuda_fill(t, value), t;
#endif
  if (is_dry_run()) return t;
  with_type<float, BFloat16, double, int64_t, int32_t, uint8_t, bool>(dtype, "full", [&](auto tag) {
    using T = typename decltype(tag)::type;
    if constexpr (std::same_as<T, BFloat16>)
      std::fill_n(t.mutable_data<T>(), t.num_elements(), BFloat16(static_cast<float>(value)));
    else std::fill_n(t.mutable_data<T>(), t.num_elements(), static_cast<T>(value));
  });
  return t;
}

Tensor Tensor::arange(int64_t n, DType dtype) {
  Tensor t = empty({n}, dtype, Device::cpu());
  with_type<float, double, int64_t, int32_t>(dtype, "arange", [&](auto tag) {
    using T = typename decltype(tag)::type;
    for (int64_t i = 0; i < n; ++i) t.mutable_data<T>()[i] = static_cast<T>(i);
  });
  return t;
}

template <class T>
Tensor Tensor::from(std::span<const T> values, const Shape& shape) {
  WEFT_CHECK(shape.num_elements() == static_cast<int64_t>(values.size()),
             str("Tensor::from: ", values.size(), " values for shape ", shape),
             "give as many values as the shape has elements");
  Tensor t = empty(shape, dtype_of<T>(), Device::cpu());
  if (!values.empty()) std::memcpy(t.mutable_raw(), values.data(), values.size_bytes());
  return t;
}
template Tensor Tensor::from(std::span<const float>, const Shape&);
template Tensor Tensor::from(std::span<const BFloat16>, const Shape&);
template Tensor Tensor::from(std::span<const double>, const Shape&);
template Tensor Tensor::from(std::span<const int64_t>, const Shape&);
template Tensor Tensor::from(std::span<const int32_t>, const Shape&);
template Tensor Tensor::from(std::span<const uint8_t>, const Shape&);
template Tensor Tensor::from(std::span<const bool>, const Shape&);
template const float* Tensor::data<float>()
    const;  // for files of more instructions: see ops/cpu/attention/instances.cpp

Tensor Tensor::borrow(void* data, const Shape& shape, DType dtype, std::shared_ptr<void> keep_alive) {
  Tensor t;
  t.shape_ = shape;
  t.strides_ = contiguous_strides(shape);
  t.num_elements_ = shape.num_elements();
  t.dtype_ = dtype;
  t.storage_ = new Storage;
  t.storage_->references.store(1);
  t.storage_->data = data;
  t.storage_->bytes = t.storage_->capacity = t.num_bytes();
  t.storage_->keep_alive = std::move(keep_alive);
  return t;
}

int64_t Tensor::size(int64_t dim) const { return shape_[wrap_dim(dim, num_dims(), "size")]; }

void* Tensor::mutable_raw() {
  if (!storage_) return nullptr;
  storage_->version.fetch_add(1, std::memory_order_relaxed);
  return static_cast<char*>(storage_->data) + offset_bytes();
}

void Tensor::check_type(DType asked) const {
  WEFT_CHECK(dtype_ == asked, str("data: the tensor is ", *this, ", asked for ", asked),
             "ask for the tensor's own type, or cast");
}

Tensor Tensor::cpu() const {
#ifdef WEFT_WITH_CUDA
  if (is_cuda()) {
    int64_t low = 0, high = num_elements_ ? 1 : 0, width = static_cast<int64_t>(size_of(dtype_));
    for (int d = 0; d < num_dims() && high; ++d) (strides_[d] < 0 ? low : high) += strides_[d] * (shape_[d] - 1);
    Tensor memory = Tensor::empty({high - low}, dtype_, Device::cpu());
    cuda::copy_bytes(memory.mutable_raw(), static_cast<const char*>(raw()) + low * width, memory.num_bytes(),
                     Device::cpu(), device());
    return memory.as_strided(shape_, strides_, -low);
  }
#endif
  return *this;
}

void Tensor::set_bytes(const Tensor& from) {
  WEFT_CHECK(shape_ == from.shape_ && dtype_ == from.dtype_ && is_contiguous_ && from.is_contiguous_,
             str("set_bytes: ", *this, " from ", from), "give row-major tensors of one shape and dtype");
  if (num_elements_ == 0) return;
#ifdef WEFT_WITH_CUDA
  if (is_cuda() || from.is_cuda())
    return cuda::copy_bytes(mutable_raw(), from.raw(), num_bytes(), device(), from.device());
#endif
  if (!is_dry_run()) std::memmove(mutable_raw(), from.raw(), num_bytes());
}

double Tensor::item() const {
  WEFT_CHECK(num_elements_ == 1, str("item: the tensor is ", *this), "item() needs a tensor with one element");
  return element_as_double(cpu().raw(), dtype_);
}

template <class T>
std::vector<T> Tensor::to_vector() const {
  check_type(dtype_of<T>());
  std::vector<T> values;
  values.reserve(static_cast<size_t>(num_elements_));
  Tensor here = cpu();
  const char* base = static_cast<const char*>(here.raw());
  for_each_offset(*this, [&](int64_t offset) {
    T x;
    std::memcpy(&x, base + offset, sizeof x);
    values.push_back(x);
  });
  return values;
}
template std::vector<float> Tensor::to_vector() const;
template std::vector<BFloat16> Tensor::to_vector() const;
template std::vector<double> Tensor::to_vector() const;
template std::vector<int64_t> Tensor::to_vector() const;
template std::vector<int32_t> Tensor::to_vector() const;
template std::vector<uint8_t> Tensor::to_vector() const;
template std::vector<bool> Tensor::to_vector() const;

Tensor Tensor::view(const Shape& shape, const Shape& strides, int64_t offset) const {
  Tensor t(*this);
  t.shape_ = shape;
  t.strides_ = strides;
  t.offset_ = offset;
  t.num_elements_ = shape.num_elements();
  t.is_contiguous_ = strides_are_contiguous(shape, strides);
  return t;
}

Tensor Tensor::as_strided(const Shape& shape, const Shape& strides, int64_t offset) const {
  WEFT_CHECK(shape.num_dims() == strides.num_dims(), str("as_strided: shape ", shape, ", strides ", strides),
             "give one stride per dimension");
  int64_t low = offset_ + offset, high = low;
  for (int i = 0; i < shape.num_dims(); ++i)
    (strides[i] < 0 ? low : high) += strides[i] * std::max<int64_t>(shape[i] - 1, 0);
  auto held = storage_ ? static_cast<int64_t>(storage_->bytes / size_of(dtype_)) : 0;
  WEFT_CHECK(
      shape.num_elements() == 0 || (0 <= low && high < held),
      str("as_strided: shape ", shape, ", strides ", strides, ", offset ", offset, " leave the memory of ", *this),
      "stay inside the tensor's memory");
  return view(shape, strides, offset_ + offset);
}

Tensor Tensor::reshape(const Shape& wanted) const {
  Shape shape = wanted;
  int unknown = -1;
  int64_t known = 1;
  for (int i = 0; i < shape.num_dims(); ++i) {
    if (shape[i] != -1) {
      known *= shape[i];
      continue;
    }
    WEFT_CHECK(unknown < 0, str("reshape: ", *this, " to ", wanted), "leave at most one size as -1");
    unknown = i;
  }
  if (unknown >= 0) shape[unknown] = known ? num_elements_ / known : 0;
  WEFT_CHECK(shape.num_elements() == num_elements_, str("reshape: ", *this, " to ", wanted),
             "keep the number of elements");
  if (is_contiguous_) return view(shape, contiguous_strides(shape), offset_);

  // Walk both shapes from the front, matching runs of equal size; each run of old dimensions must be mergeable.
  Shape strides = shape;
  int i = 0, j = 0;
  while (i < num_dims() && j < shape.num_dims()) {
    int64_t old_size = shape_[i], new_size = shape[j];
    int i_end = i + 1, j_end = j + 1;
    while (old_size != new_size) {
      if (old_size < new_size) old_size *= shape_[i_end++];
      else new_size *= shape[j_end++];
    }
    for (int k = i; k + 1 < i_end; ++k)
      WEFT_CHECK(shape_[k] == 1 || shape_[k + 1] == 1 || strides_[k] == strides_[k + 1] * shape_[k + 1],
                 str("reshape: ", *this, " with strides ", strides_, " cannot become ", wanted, " without a copy"),
                 "call ops::contiguous first");
    int64_t stride = strides_[i_end - 1];
    for (int k = j_end - 1; k >= j; --k) {
      strides[k] = stride;
      stride *= shape[k];
    }
    i = i_end;
    j = j_end;
  }
  for (; j < shape.num_dims(); ++j) strides[j] = 1;
  return view(shape, strides, offset_);
}

Tensor Tensor::permute(std::initializer_list<int> order) const {
  WEFT_CHECK(static_cast<int>(order.size()) == num_dims(), str("permute: ", order.size(), " numbers for ", *this),
             "name every dimension once");
  Shape shape, strides;
  unsigned seen = 0;
  for (int dim : order) {
    int d = wrap_dim(dim, num_dims(), "permute");
    WEFT_CHECK(!(seen >> d & 1u), str("permute: dimension ", dim, " twice for ", *this), "name every dimension once");
    seen |= 1u << d;
    shape.push_back(shape_[d]);
    strides.push_back(strides_[d]);
  }
  return view(shape, strides, offset_);
}

Tensor Tensor::transpose(int64_t dim_a, int64_t dim_b) const {
  int a = wrap_dim(dim_a, num_dims(), "transpose"), b = wrap_dim(dim_b, num_dims(), "transpose");
  Shape shape = shape_, strides = strides_;
  std::swap(shape[a], shape[b]);
  std::swap(strides[a], strides[b]);
  return view(shape, strides, offset_);
}

Tensor Tensor::slice(int64_t dim, int64_t begin, int64_t end, int64_t step) const {
  int d = wrap_dim(dim, num_dims(), "slice");
  int64_t size = shape_[d], first = begin < 0 ? begin + size : begin, last = end < 0 ? end + size : end;
  WEFT_CHECK(step >= 1 && 0 <= first && first <= last && last <= size,
             str("slice: [", begin, ", ", end, ") step ", step, " of dimension ", dim, " of ", *this),
             str("use 0 <= begin <= end <= ", size, " and a step of at least 1"));
  Shape shape = shape_, strides = strides_;
  shape[d] = (last - first + step - 1) / step;
  strides[d] *= step;
  return view(shape, strides, offset_ + (shape[d] ? first * strides_[d] : 0));
}

Tensor Tensor::select(int64_t dim, int64_t index) const {
  int d = wrap_dim(dim, num_dims(), "select");
  int64_t i = index < 0 ? index + shape_[d] : index;
  WEFT_CHECK(0 <= i && i < shape_[d], str("select: index ", index, " of dimension ", dim, " of ", *this),
             str("use 0 .. ", shape_[d] - 1));
  Shape shape = shape_, strides = strides_;
  shape.erase(d);
  strides.erase(d);
  return view(shape, strides, offset_ + i * strides_[d]);
}

Tensor Tensor::expand(const Shape& shape) const {
  int shift = shape.num_dims() - num_dims();
  bool fits = shift >= 0;
  Shape strides = shape;
  for (int i = 0; fits && i < shape.num_dims(); ++i) {
    bool repeats = i < shift || (shape_[i - shift] == 1 && shape[i] != 1);
    strides[i] = repeats ? 0 : strides_[i - shift];
    fits = i < shift || repeats || shape_[i - shift] == shape[i];
  }
  WEFT_CHECK(fits, str("expand: ", *this, " to ", shape), "only sizes of 1 and new leading dimensions can grow");
  return view(shape, strides, offset_);
}

Tensor Tensor::unsqueeze(int64_t dim) const {
  int d = wrap_dim(dim, num_dims() + 1, "unsqueeze");
  Shape shape = shape_, strides = strides_;
  strides.insert(d, d < num_dims() ? strides_[d] * shape_[d] : 1);
  shape.insert(d, 1);
  return view(shape, strides, offset_);
}

Tensor Tensor::squeeze(int64_t dim) const {
  int d = wrap_dim(dim, num_dims(), "squeeze");
  WEFT_CHECK(shape_[d] == 1, str("squeeze: dimension ", dim, " of ", *this), "only a size of 1 can be dropped");
  Shape shape = shape_, strides = strides_;
  shape.erase(d);
  strides.erase(d);
  return view(shape, strides, offset_);
}

std::string to_string(const Tensor& t) {
  return t.defined() ? str(t.shape(), " ", t.dtype(), " ", t.device()) : std::string("undefined");
}

std::string describe(const Tensor& t, int64_t max_elements) {
  std::string text = str(t, " {");
  if (t.defined()) {
    int64_t count = 0;
    Tensor here = t.cpu();
    const char* base = static_cast<const char*>(here.raw());
    for_each_offset(t, [&](int64_t offset) {
      if (count < max_elements) text += str(count ? ", " : "", element_as_double(base + offset, t.dtype()));
      else if (count == max_elements) text += ", ...";
      ++count;
    });
  }
  return text + "}";
}

}  // namespace weft
