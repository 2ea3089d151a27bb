// Limits: the library's own routes for one product, oneDNN's on the CPU, cuBLASLt called directly on a GPU; a copy of memory.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "ops/cpu/gemm.h"
#include "weft/core/tensor.h"

namespace weft::bench {

// All routes that exist for a b + beta c -> c [M, N] of dtype `out`; a and b are matrices in one of the two plain layouts. None on an
// emulated GPU.
// bf16 that oneDNN does not have on this CPU is replaced by f32 products of the same shape.
class GemmRoutes {
 public:
  GemmRoutes(const Tensor& a, const Tensor& b, DType out, double beta = 0);
  const std::vector<std::function<void()>>& functions() const { return functions_; }
  const std::vector<std::string>& names() const {
    return names_;
  }                                // "sgemm", "plain", "packed"; "f32 sgemm", ...; "cuBLASLt"
  Tensor& result() { return c_; }  // of the route that ran last

 private:
  void add_routes(const cpu::Gemm& g, const std::string& prefix);

  Tensor a_, b_, c_;
  std::vector<std::function<void()>> functions_;
  std::vector<std::string> names_;
};

// A copy of memory far larger than the caches.
class Copy {
 public:
  explicit Copy(Device device);
  void operator()();
  double bytes_moved() const { return 2 * static_cast<double>(from_.num_elements()); }  // read and written

 private:
  Tensor from_, to_;
};

}  // namespace weft::bench
