// Elementwise kernels on CUDA devices: the same calls as ops/cpu/elementwise.h and copy.h. Callers reach them only in builds
// with CUDA (`if constexpr (kCuda)`).
#pragma once

#include "ops/math/elementwise.h"
#include "weft/core/rng.h"
#include "weft/core/tensor.h"

namespace weft::cuda {

template <class F>
Tensor map(const Tensor& x, F f);
template <class F>
Tensor map_backward(const Tensor& dy, const Tensor& kept, F f);
template <class F>
Tensor zip(const Tensor& a, const Tensor& b, const Shape& shape, F f);
void swiglu_backward(Tensor& dgate, Tensor& dup, const Tensor& dy, const Tensor& gate, const Tensor& up);
void where(Tensor& y, const Tensor& mask, const Tensor& a, const Tensor& b);
void copy(Tensor& to, const Tensor& from);  // also between devices
void fill(Tensor& x, double value);
void scaled_add(Tensor& to, const Tensor& from, double factor);
void scale(Tensor& x, double factor);
void fill_normal(Tensor& x, Rng rng, double mean, double std);
void fill_uniform(Tensor& x, Rng rng, double low, double high);
void dropout(Tensor& y, const Tensor& x, const Tensor& positions, double p, Rng rng, int64_t first_row);

}  // namespace weft::cuda
