// `weft bench call`: what one call of an op costs when there is next to nothing to compute.
#include <functional>

#include "tools/bench/bench.h"
#include "weft/ops/matmul.h"

namespace weft::bench {

namespace {

struct Call {
  const char* name;
  const char* shape;
  double goal_us;
  std::function<void()> run;
};

// Calls without a graph.
std::vector<Call> op_calls() {
  Tensor a = Tensor::full({8, 8}, 0.5), b = Tensor::full({8, 8}, 0.25), bias = Tensor::full({8}, 1);
  Tensor out = Tensor::zeros({8, 8});
  return {
      {"matmul", "8x8x8", 1.0, [=] { ops::matmul(a, b); }},
      {"matmul_into", "8x8x8", 1.0, [=]() mutable { ops::matmul_into(out, a, b, {}, 0); }},
      {"linear with bias", "8x8x8", 1.0, [=] { ops::linear(a, b, bias); }},
  };
}

void add_rows(std::vector<Row>& rows, const std::vector<Call>& calls, const BenchOptions& options) {
  for (const Call& call : calls) {
    Timing t = time_in_turn({&call.run, 1}, options.quick ? 0.2 : 1.0, 10)[0];
    rows.push_back(time_row(call.name, call.shape, kF32, t.best_s * 1e6, "us", call.goal_us));
  }
}

}  // namespace

std::vector<Row> run_call(const BenchOptions& options) {
  std::vector<Row> rows;
  add_rows(rows, op_calls(), options);
  return rows;
}

}  // namespace weft::bench
