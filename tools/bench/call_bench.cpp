// `weft bench call`: what one call of an op costs when there is next to nothing to compute. Inputs are constant, so that one
// number is the whole expected result.
#include <cmath>
#include <functional>

#include "tools/bench/bench.h"
#include "weft/autograd/functions.h"
#include "weft/core/error.h"
#include "weft/ops/elementwise.h"
#include "weft/ops/matmul.h"
#include "weft/ops/reduce.h"

namespace weft::bench {

namespace {

struct Call {
  const char* name;
  const char* shape;
  double goal_us, expected;  // microseconds; every element of the result
  std::function<Tensor()> run;
};

double silu_of_half() { return 0.5 / (1 + std::exp(-0.5)); }

std::vector<Call> calls_without_tape() {
  Tensor x = Tensor::full({64}, 0.5), y = Tensor::full({64}, 0.25);
  Tensor a = x.reshape({8, 8}), b = y.reshape({8, 8}), bias = Tensor::full({8}, 1), out = Tensor::zeros({8, 8});
  return {
      {"add", "64", 1, 0.75, [=] { return ops::add(x, y); }},
      {"silu", "64", 1, silu_of_half(), [=] { return ops::silu(x); }},
      {"sum", "8x8", 1, 4, [=] { return ops::sum(a, -1); }},
      {"matmul", "8x8x8", 1, 1, [=] { return ops::matmul(a, b); }},
      {"matmul_into", "8x8x8", 1, 1, [=]() mutable { return ops::matmul_into(out, a, b, {}, 0), out; }},
      {"linear with bias", "8x8x8", 1, 2, [=] { return ops::linear(a, b, bias); }},
  };
}

// Recording alone: the forward op and its node, which is freed with the result.
std::vector<Call> calls_with_tape() {
  Var x = variable(Tensor::full({64}, 0.5)), y = variable(Tensor::full({64}, 0.25));
  Var a = variable(Tensor::full({8, 8}, 0.5)), b = variable(Tensor::full({8, 8}, 0.25));
  return {
      {"add with tape", "64", 2, 0.75, [=] { return add(x, y).value(); }},
      {"silu with tape", "64", 2, silu_of_half(), [=] { return silu(x).value(); }},
      {"matmul with tape", "8x8x8", 2, 1, [=] { return matmul(a, b).value(); }},
  };
}

void add_rows(std::vector<Row>& rows, const std::vector<Call>& calls, const BenchOptions& options) {
  for (const Call& call : calls) {
    for (float got : call.run().to_vector<float>())
      WEFT_CHECK(std::abs(got - call.expected) < 1e-5, str("bench call: ", call.name, " gives ", got),
                 "run weft doctor --kernels");
    std::function<void()> run = [&] { call.run(); };
    Timing t = time_in_turn({&run, 1}, options.quick ? 0.2 : 1.0, 10)[0];
    rows.push_back(time_row(call.name, call.shape, kF32, t.best_s * 1e6, "us", call.goal_us));
  }
}

}  // namespace

std::vector<Row> run_call(const BenchOptions& options) {
  std::vector<Row> rows;
  add_rows(rows, calls_without_tape(), options);
  add_rows(rows, calls_with_tape(), options);
  return rows;
}

}  // namespace weft::bench
