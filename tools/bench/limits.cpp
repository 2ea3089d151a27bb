#include "tools/bench/limits.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <utility>

#include "ops/cpu/onednn_gemm.h"
#include "tools/bench/bench.h"
#include "tools/bench/cublaslt_route.h"
#ifdef WEFT_WITH_CUDA
#include "src/core/cuda/runtime.h"
#endif
#include "weft/core/parallel.h"
#include "weft/core/rng.h"
#include "weft/ops/elementwise.h"

namespace weft::bench {

namespace {

cpu::GemmOperand operand(const Tensor& x) {
  bool is_transposed = x.strides()[1] != 1;
  return {x.raw(), is_transposed, x.strides()[is_transposed ? 1 : 0]};
}

// Same values and strides in f32.
Tensor widened(const Tensor& x) {
  bool is_transposed = x.strides()[1] != 1;
  Tensor stored = is_transposed ? x.transpose(0, 1) : x;
  Tensor copy = Tensor::empty(stored.shape(), kF32);
  std::vector<BFloat16> values = stored.to_vector<BFloat16>();
  std::copy(values.begin(), values.end(), copy.mutable_data<float>());
  return is_transposed ? copy.transpose(0, 1) : copy;
}

}  // namespace

GemmRoutes::GemmRoutes(const Tensor& a, const Tensor& b, DType out, double beta)
    : a_(a), b_(b), c_(Tensor::full({a.size(0), b.size(1)}, 0, out, a.device())) {
  if (a.is_cuda()) {
#if defined(WEFT_WITH_CUDA) && !defined(WEFT_CUDA_EMULATED)
    functions_.push_back(cublaslt_route(a_, b_, c_, beta));
    names_.push_back("cuBLASLt");
#endif
    return;
  }
  cpu::Gemm g;
  g.in = a.dtype(), g.out = out;
  g.m = a.size(0), g.k = a.size(1), g.n = b.size(1), g.ldc = g.n;
  g.beta = beta;
  g.a = operand(a_), g.b = operand(b_), g.c = c_.mutable_raw();
  add_routes(g, "");
  if (!functions_.empty()) return;
  a_ = widened(a_), b_ = widened(b_), c_ = Tensor::empty(c_.shape(), kF32);
  g.in = g.out = kF32;
  g.a = operand(a_), g.b = operand(b_), g.c = c_.mutable_raw();
  add_routes(g, "f32 ");
}

void GemmRoutes::add_routes(const cpu::Gemm& g, const std::string& prefix) {
  const std::pair<cpu::Route, const char*> kRoutes[] = {
      {cpu::Route::sgemm, "sgemm"}, {cpu::Route::plain, "plain"}, {cpu::Route::packed, "packed"}};
  for (auto [route, name] : kRoutes) {
    auto runner = std::make_shared<cpu::RouteRunner>(g, route);
    if (!runner->exists()) continue;
    functions_.push_back([runner] { runner->run(); });
    names_.push_back(prefix + name);
  }
}

static std::map<std::pair<DType, int>, double> measured_peaks;  // by dtype and threads

void forget_gemm_peaks() { measured_peaks.clear(); }

double gemm_peak(DType dtype) {
  double& peak = measured_peaks[{dtype, num_threads()}];
  if (peak > 0) return peak;
  struct Size {
    int64_t m, k, n;
  };
  std::vector<Size> sizes = {{512, 512, 512}, {1024, 1024, 1024}, {2048, 512, 1536}, {2048, 768, 2048}};
  if (default_device().is_cuda()) sizes = {{4096, 4096, 4096}, {8192, 8192, 8192}, {8192, 2048, 8192}};
  for (auto [m, k, n] : sizes) {
    Tensor a = Tensor::full({m, k}, 0.5, dtype), b = Tensor::full({n, k}, 0.25, dtype);
    // Multiplying constants takes less power, and a GPU's clock rises.
    if (a.is_cuda()) ops::fill_uniform_(a, Rng(1), -1, 1), ops::fill_uniform_(b, Rng(2), -1, 1);
    for (const Tensor& right : {b.reshape({k, n}), b.transpose(0, 1)}) {
      GemmRoutes routes(a, right, dtype);
      for (Timing t : time_in_turn(routes.functions(), 0.2))
        peak = std::max(peak, 2.0 * static_cast<double>(m * k * n) / t.best_s);
    }
  }
  return peak;
}

Copy::Copy(Device device) {
  const int64_t bytes = int64_t{device.is_cuda() ? 1024 : 192} << 20;
  from_ = Tensor::full({bytes}, 1, kU8, device), to_ = Tensor::full({bytes}, 2, kU8, device);
}

void Copy::operator()() {
  const auto* source = static_cast<const char*>(from_.raw());
  auto* target = static_cast<char*>(to_.mutable_raw());
  const int64_t bytes = from_.num_elements();
#ifdef WEFT_WITH_CUDA
  if (Device device = from_.device(); device.is_cuda())
    return cuda::copy_bytes(target, source, static_cast<size_t>(bytes), device, device);
#endif
  parallel_for(bytes, 1 << 20, [&](int64_t begin, int64_t end) {
    std::memcpy(target + begin, source + begin, static_cast<size_t>(end - begin));
  });
}

double memory_bandwidth() {
  Copy copy(default_device());
  std::function<void()> run = [&] { copy(); };
  return copy.bytes_moved() / time_in_turn({&run, 1}, 0.5)[0].best_s;
}

}  // namespace weft::bench
