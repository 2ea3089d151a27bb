#include "ops/cpu/dense.h"

#include <algorithm>
#include <cstring>

#include "weft/core/error.h"
#include "weft/core/parallel.h"

namespace weft::cpu {

namespace {

constexpr int64_t kGrain = 16384;   // elements that one thread copies at least

// The dimensions of a copy, outermost first, merged where both sides step through two as through one.
struct Loops {
  Shape sizes, to_strides, from_strides;

  Loops(const Tensor& to, const Tensor& from) {
    for (int d = 0; d < to.num_dims(); ++d) {
      int64_t size = to.shape()[d], to_stride = to.strides()[d], from_stride = from.strides()[d];
      if (size == 1) continue;
      int last = sizes.num_dims() - 1;
      if (last >= 0 && to_strides[last] == to_stride * size && from_strides[last] == from_stride * size) {
        sizes[last] *= size, to_strides[last] = to_stride, from_strides[last] = from_stride;
        continue;
      }
      sizes.push_back(size), to_strides.push_back(to_stride), from_strides.push_back(from_stride);
    }
    if (sizes.empty()) sizes.push_back(1), to_strides.push_back(1), from_strides.push_back(1);
  }
};

template <class T>
void copy_rows(const Loops& loops, T* to, const T* from) {
  int last = loops.sizes.num_dims() - 1;
  int64_t cols = loops.sizes[last], to_step = loops.to_strides[last], from_step = loops.from_strides[last];
  bool is_plain = to_step == 1 && from_step == 1;
  if (last == 0 && is_plain) {
    return parallel_for(cols, kGrain, [&](int64_t begin, int64_t end) {
      std::memcpy(to + begin, from + begin, static_cast<size_t>(end - begin) * sizeof(T));
    });
  }
  parallel_for(loops.sizes.num_elements() / cols, std::max<int64_t>(1, kGrain / cols), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      T* y = to;
      const T* x = from;
      for (int64_t d = last - 1, rest = row; d >= 0; --d) {
        int i = static_cast<int>(d);
        y += rest % loops.sizes[i] * loops.to_strides[i];
        x += rest % loops.sizes[i] * loops.from_strides[i];
        rest /= loops.sizes[i];
      }
      if (is_plain) std::memcpy(y, x, static_cast<size_t>(cols) * sizeof(T));
      else
        for (int64_t c = 0; c < cols; ++c) y[c * to_step] = x[c * from_step];
    }
  });
}

}  // namespace

void copy_elements(Tensor& to, const Tensor& from) {
  WEFT_ASSERT(to.shape() == from.shape() && to.dtype() == from.dtype());
  if (to.num_elements() == 0) return;
  Loops loops(to, from);
  void* target = to.mutable_raw();
  const void* source = from.raw();
  switch (size_of(to.dtype())) {
    case 1: return copy_rows(loops, static_cast<uint8_t*>(target), static_cast<const uint8_t*>(source));
    case 2: return copy_rows(loops, static_cast<uint16_t*>(target), static_cast<const uint16_t*>(source));
    case 4: return copy_rows(loops, static_cast<uint32_t*>(target), static_cast<const uint32_t*>(source));
    default: return copy_rows(loops, static_cast<uint64_t*>(target), static_cast<const uint64_t*>(source));
  }
}

Tensor dense_copy(const Tensor& x) {
  Tensor copy = Tensor::empty(x.shape(), x.dtype(), x.device());
  copy_elements(copy, x);
  return copy;
}

Tensor dense(const Tensor& x) { return x.is_contiguous() ? x : dense_copy(x); }

}  // namespace weft::cpu
