// The only door to oneDNN (API v2 and v3): products of f32 and bf16. Primitives are cached per thread by shape, strides,
// dtypes, beta and thread count; a call with a known key changes data pointers only.
#pragma once

#include <memory>
#include <string>

#include "ops/cpu/gemm.h"

namespace weft::cpu {

// f32, one product, no bias.
void onednn_sgemm(const Gemm& g);
// Batches, bias, f32 and bf16. False, with nothing done, where this library has only its reference loop for the case on
// this CPU (bf16 without AVX-512).
bool onednn_matmul(const Gemm& g);
bool onednn_has_matmul(const Gemm& g);

bool onednn_has_avx512();
std::string onednn_version();  // of the loaded library and what it uses of this CPU: "2.6.3, avx2"

// For benchmarks: the routes that oneDNN itself offers for a product, each held ready. `packed` has its weights (b)
// reordered beforehand, as a library that owns its weights' layout could.
enum class Route { sgemm, plain, packed };
class RouteRunner {
 public:
  RouteRunner(const Gemm& g, Route route);
  ~RouteRunner();
  bool exists() const;  // this library and CPU have the route
  void run();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace weft::cpu
