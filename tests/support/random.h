// The seed of this test run and random tensors made from it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "weft/core/rng.h"
#include "weft/core/tensor.h"

namespace weft::test {

uint64_t seed();
void expect_guard_errors(int64_t count);      // of this test: it breaks guards on purpose
std::string argument(std::string_view name);  // x of the program's argument --name=x; "" without it

// Standard normal values, rounded to `dtype`. Different names give different values.
inline Tensor random_normal(const Shape& shape, std::string_view name, DType dtype = kF32) {
  Rng rng = Rng(seed())[name];
  Tensor t = Tensor::empty(shape, dtype, Device::cpu());
  for (int64_t i = 0; i < t.num_elements(); ++i) {
    float x = rng.normal(static_cast<uint64_t>(i));
    if (dtype == kF64) t.mutable_data<double>()[i] = x;
    else if (dtype == kBF16) t.mutable_data<BFloat16>()[i] = BFloat16(x);
    else t.mutable_data<float>()[i] = x;
  }
  return t;
}

}  // namespace weft::test
