// `weft bench gemm`: products through our tensors beside the best of the library's own routes for the same shape and layout: oneDNN's, or
// on a GPU cuBLASLt called directly.
#include <algorithm>
#include <cmath>

#include "tools/bench/bench.h"
#include "tools/bench/limits.h"
#include "weft/core/error.h"
#include "weft/core/stream.h"
#include "weft/ops/elementwise.h"
#include "weft/ops/matmul.h"
#include "weft/ops/reduce.h"

namespace weft::bench {

namespace {

struct Case {
  std::string name;
  int64_t m, k, n;
  bool transpose_a = false, transpose_b = false;  // how the operands are stored
  bool has_f32_out = false;                       // whatever the operands are
  double beta = 0;                                // 1: added to what is there
};

// Squares as they come; a layer's weight is [out, in] = [3072, 768] for 4096 tokens, and those of the small model of `weft bench train`,
// [128, 128] and [512, 128]. Gradients of weights are f32.
std::vector<Case> cpu_cases() {
  return {{"square", 512, 512, 512},
          {"square", 1024, 1024, 1024},
          {"square", 2048, 2048, 2048},
          {"forward", 4096, 768, 3072, false, true},
          {"dX", 4096, 3072, 768},
          {"dW", 3072, 4096, 768, true, false, true},
          {"small forward", 4096, 128, 128, false, true},
          {"small forward", 4096, 128, 512, false, true},
          {"small dW", 128, 4096, 128, true, false, true},
          {"small dW", 512, 4096, 128, true, false, true}};
}
constexpr const char* kCpuGoal = "0.95";  // of the best route

// The training of a model of about 350 M parameters: width 1024, 4 x 4096 tokens. The head takes as many tokens at a time as
// linear_cross_entropy does of this vocabulary, has f32 logits, and adds up the gradient of its weight.
std::vector<Case> cuda_cases() {
  struct Layer {
    const char* name;
    int64_t tokens, in, out;
    bool is_head = false;
  };
  const Layer layers[] = {{"qkv", 16384, 1024, 3072},
                          {"projection", 16384, 1024, 1024},
                          {"MLP up", 16384, 1024, 4096},
                          {"MLP down", 16384, 4096, 1024},
                          {"head", 2560, 1024, 50304, true}};
  std::vector<Case> cases = {{"square", 8192, 8192, 8192}};
  for (const auto& [name, tokens, in, out, is_head] : layers) {
    cases.push_back({str(name, " forward"), tokens, in, out, false, true, is_head});
    cases.push_back({str(name, " dX"), tokens, out, in});
    cases.push_back({str(name, " dW"), out, tokens, in, true, false, true, is_head ? 1.0 : 0.0});
  }
  return cases;
}

Tensor stored(int64_t rows, int64_t cols, bool is_transposed, DType dtype, uint32_t state) {
  Tensor t = Tensor::empty({is_transposed ? cols : rows, is_transposed ? rows : cols}, dtype, Device::cpu());
  with_type<float, BFloat16>(dtype, "bench gemm", [&](auto tag) {
    using T = typename decltype(tag)::type;
    T* x = t.mutable_data<T>();
    for (int64_t i = 0; i < t.num_elements(); ++i) {
      state = state * 1664525u + 1013904223u;
      x[i] = T(static_cast<float>(state >> 25) / 64 - 1);  // [-1, 1) in steps that bf16 holds
    }
  });
  t = ops::to(t, default_device());
  return is_transposed ? t.transpose(0, 1) : t;
}

// Some elements of the product against a float64 loop.
void check(const Tensor& a, const Tensor& b, const Tensor& y) {
  int64_t m = y.size(0), n = y.size(1), k = a.size(1);
  for (int64_t i = 0; i < 7; ++i)
    for (int64_t j = 0; j < 7; ++j) {
      int64_t row = i * (m - 1) / 6, col = j * (n - 1) / 6;
      Tensor a_row = a.select(0, row).cpu(), b_col = b.select(1, col).cpu();
      double want = 0, magnitude = 0;
      for (int64_t l = 0; l < k; ++l) {
        double term = a_row.slice(0, l, l + 1).item() * b_col.slice(0, l, l + 1).item();
        want += term;
        magnitude += std::abs(term);
      }
      double got = y.select(0, row).slice(0, col, col + 1).item();
      // Tensor cores cut sums where a CPU rounds them.
      double allowed = (y.is_cuda() ? 1e-5 : 1e-6) * magnitude + (y.dtype() == kBF16 ? 0.004 * std::abs(want) : 0);
      WEFT_CHECK(
          std::abs(got - want) <= allowed,
          str("bench gemm: element [", row, ", ", col, "] of ", a, " times ", b, " is ", got, ", must be ", want),
          "please report this");
    }
}

// The library called directly against ours, which has been checked: every element, up to a rounding of the largest.
void check_direct(GemmRoutes& routes, const Tensor& y) {
  auto largest = [](const Tensor& x) { return ops::max(ops::max(ops::abs(x), 1), 0).item(); };
  ops::fill_(routes.result(), 0);
  routes.functions()[0]();
  Tensor difference = ops::sub(ops::cast(routes.result(), kF32), ops::cast(y, kF32));
  const double most = largest(difference), size = largest(y);
  WEFT_CHECK(most <= (y.dtype() == kBF16 ? 0x1p-7 : 1e-4) * size,
             str("bench gemm: ", y, " differs by ", most, " from ", routes.names()[0],
                 " called directly, the largest is ", size),
             "please report this");
}

Row run_case(const Case& c, DType dtype, const BenchOptions& options) {
  Tensor a = stored(c.m, c.k, c.transpose_a, dtype, 1), b = stored(c.k, c.n, c.transpose_b, dtype, 2);
  const DType out = c.has_f32_out ? kF32 : dtype;
  Tensor y = ops::matmul(a, b, {.out = out});
  check(a, b, y);

  GemmRoutes routes(a, b, out, c.beta);
  if (a.is_cuda()) check_direct(routes, y);
  std::vector<std::function<void()>> functions = routes.functions();
  if (c.beta == 0) functions.push_back([&] { ops::matmul(a, b, {.out = out}); });
  else functions.push_back([&] { ops::matmul_into(y, a, b, {}, c.beta); });
  const double seconds = a.is_cuda() ? (options.quick ? 0.5 : 2) : (options.quick ? 0.8 : 4);
  std::vector<Timing> times = time_in_turn(functions, seconds, options.quick ? 2 : 8);
  Timing ours = times.back();
  times.pop_back();
  size_t best = 0;
  for (size_t i = 1; i < times.size(); ++i)
    if (times[i].best_s < times[best].best_s) best = i;
  double gflop = 2e-9 * static_cast<double>(c.m) * static_cast<double>(c.k) * static_cast<double>(c.n);
  Row row =
      rate_row(c.name, str(c.m, "x", c.k, "x", c.n), dtype, gflop / ours.best_s, "GFLOP/s", gflop / times[best].best_s);
  if (!a.is_cuda()) row.extra.emplace_back("goal", kCpuGoal);
  row.extra.emplace_back("best route", routes.names()[best]);
  if (a.is_cuda()) row.extra.emplace_back("of peak", str(std::round(row.value / gemm_peak(dtype) * 1e12) / 1000));
  return row;
}

}  // namespace

std::vector<Row> run_gemm(const BenchOptions& options) {
  std::vector<Row> rows;
  if (default_device().is_cuda()) {
    WEFT_CHECK(!has_emulated_cuda(), "bench gemm: an emulated GPU has no library to compare with", "use --device cpu");
    for (const Case& c : cuda_cases()) rows.push_back(run_case(c, kBF16, options));
    return rows;
  }
  for (DType dtype : {kF32, kBF16})
    for (const Case& c : cpu_cases()) rows.push_back(run_case(c, dtype, options));
  return rows;
}

}  // namespace weft::bench
