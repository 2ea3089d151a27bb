// `weft bench gemm`: products through our tensors beside the best of oneDNN's own routes for the same shape and layout.
#include <algorithm>
#include <cmath>

#include "tools/bench/bench.h"
#include "tools/bench/limits.h"
#include "weft/core/error.h"
#include "weft/ops/elementwise.h"
#include "weft/ops/matmul.h"

namespace weft::bench {

namespace {

struct Case {
  const char* name;
  int64_t m, k, n;
  bool transpose_a, transpose_b;  // how the operands are stored
};

// Squares as they come; a layer's weight is [out, in] = [3072, 768] for 4096 tokens.
const Case kCases[] = {
    {"square", 512, 512, 512, false, false},    {"square", 1024, 1024, 1024, false, false},
    {"square", 2048, 2048, 2048, false, false}, {"forward", 4096, 768, 3072, false, true},
    {"dX", 4096, 3072, 768, false, false},      {"dW", 3072, 4096, 768, true, false},
};

// The products of a model of about 350 M parameters: width 1024, 4096 tokens.
const Case kCudaCases[] = {
    {"square", 4096, 4096, 4096, false, false},  {"square", 8192, 8192, 8192, false, false},
    {"forward", 16384, 1024, 4096, false, true}, {"dX", 16384, 4096, 1024, false, false},
    {"dW", 4096, 16384, 1024, true, false},
};

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
      double allowed = 1e-6 * magnitude + (y.dtype() == kBF16 ? 0.004 * std::abs(want) : 0);
      WEFT_CHECK(
          std::abs(got - want) <= allowed,
          str("bench gemm: element [", row, ", ", col, "] of ", a, " times ", b, " is ", got, ", must be ", want),
          "please report this");
    }
}

Row run_case(const Case& c, DType dtype, const BenchOptions& options) {
  Tensor a = stored(c.m, c.k, c.transpose_a, dtype, 1), b = stored(c.k, c.n, c.transpose_b, dtype, 2);
  DType out = std::string_view(c.name) == "dW" ? kF32 : dtype;  // gradients of weights are accumulated in f32
  check(a, b, ops::matmul(a, b, {.out = out}));

  GemmRoutes routes(a, b, out);
  std::vector<std::function<void()>> functions = routes.functions();
  functions.push_back([&] { ops::matmul(a, b, {.out = out}); });
  std::vector<Timing> times = time_in_turn(functions, options.quick ? 1.2 : 4.0, options.quick ? 2 : 8);
  Timing ours = times.back();
  times.pop_back();
  size_t best = 0;
  for (size_t i = 1; i < times.size(); ++i)
    if (times[i].best_s < times[best].best_s) best = i;
  double gflop = 2e-9 * static_cast<double>(c.m) * static_cast<double>(c.k) * static_cast<double>(c.n);
  Row row =
      rate_row(c.name, str(c.m, "x", c.k, "x", c.n), dtype, gflop / ours.best_s, "GFLOP/s", gflop / times[best].best_s);
  row.extra = {{"best route", routes.names()[best]}};
  return row;
}

}  // namespace

std::vector<Row> run_gemm(const BenchOptions& options) {
  std::vector<Row> rows;
  std::span<const Case> cases = default_device().is_cuda() ? std::span<const Case>(kCudaCases) : kCases;
  for (DType dtype : {kF32, kBF16})
    for (const Case& c : cases) rows.push_back(run_case(c, dtype, options));
  return rows;
}

}  // namespace weft::bench
