// Row-major indices of either integer type, read on the device.
#pragma once

#include "ops/cuda/kernel.cuh"

namespace weft::cuda {

struct Ids {
  const void* at;
  bool is_i64;

  explicit Ids(const Tensor& t) : at(t.raw()), is_i64(t.dtype() == kI64) {}
  __device__ __forceinline__ int64_t operator[](int64_t i) const {
    return is_i64 ? static_cast<const int64_t*>(at)[i] : static_cast<const int32_t*>(at)[i];
  }
};

}  // namespace weft::cuda
