#include "weft/autograd/gradient_check.h"

#include <algorithm>
#include <cmath>

#include "weft/autograd/functions.h"
#include "weft/core/error.h"
#include "weft/core/rng.h"
#include "weft/ops/elementwise.h"

namespace weft {

namespace {

// Weights in +-[0.5, 1.5], so that no output can hide another.
Tensor output_weights(const Shape& shape, uint64_t seed) {
  Rng rng = Rng(seed)["gradient_check"];
  Tensor weights = Tensor::empty(shape, kF64, Device::cpu());
  double* w = weights.mutable_data<double>();
  for (int64_t i = 0; i < weights.num_elements(); ++i) {
    double u = rng.uniform(static_cast<uint64_t>(i));
    w[i] = u < 0.5 ? 2 * u + 0.5 : -(2 * u - 0.5);
  }
  return weights;
}

std::vector<int64_t> sample(int64_t n, const GradientCheckOptions& options, uint64_t stream) {
  std::vector<int64_t> picks;
  if (n <= options.max_elements) {
    for (int64_t i = 0; i < n; ++i) picks.push_back(i);
    return picks;
  }
  Rng rng = Rng(options.seed)["pick"][stream];
  picks = {0, n - 1};
  for (uint64_t i = 0; static_cast<int64_t>(picks.size()) < options.max_elements; ++i)
    picks.push_back(static_cast<int64_t>(rng.below(static_cast<uint64_t>(n), i)));
  std::sort(picks.begin(), picks.end());
  picks.erase(std::unique(picks.begin(), picks.end()), picks.end());
  return picks;
}

struct Checker {
  const std::function<Var(std::span<const Var>)>& f;
  const GradientCheckOptions& options;
  std::vector<Tensor> values;  // of the inputs, private copies
  Tensor weights;

  double evaluate() const {
    NoGrad no_grad;
    std::vector<Var> constants(values.begin(), values.end());
    return sum_all(f(constants) * Var(weights)).value().item();
  }

  void compare(const std::string& name, Tensor& value, const Tensor& analytic, uint64_t stream,
               GradientCheck& result) const {
    for (int64_t i : sample(value.num_elements(), options, stream)) {
      double& place = value.mutable_data<double>()[i];
      const double x = place, h = options.step * std::max(1.0, std::abs(x));
      const double exact = analytic.defined() ? analytic.data<double>()[i] : 0.0;
      auto difference = [&](double h) {
        place = x + h;
        double up = evaluate();
        place = x - h;
        double down = evaluate();
        place = x;
        return (up - down) / (2 * h);
      };
      auto error_of = [&](double numeric) {
        double scale = options.atol + options.rtol * std::max(std::abs(numeric), std::abs(exact));
        return std::isfinite(numeric) && std::isfinite(exact) ? std::abs(numeric - exact) / scale : HUGE_VAL;
      };
      double numeric = difference(h), error = error_of(numeric);
      if (error > 1) {  // a strongly curved function: without the term in h^2 (Richardson)
        numeric = (4 * difference(h / 2) - numeric) / 3;
        error = error_of(numeric);
      }
      ++result.num_checked;
      if (error <= result.worst_error && !result.report.empty()) continue;
      result.worst_error = std::max(result.worst_error, error);
      result.report =
          str(name, "[", i, "]: gradient ", exact, ", differences give ", numeric, ", error ", error, " of the bound");
    }
  }
};

}  // namespace

GradientCheck check_gradients(const std::function<Var(std::span<const Var>)>& f, std::span<const Tensor> inputs,
                              std::span<Var* const> variables, const GradientCheckOptions& options) {
  Checker checker{f, options, {}, {}};
  std::vector<Var> leaves;
  for (const Tensor& input : inputs) {
    WEFT_CHECK(input.dtype() == kF64, str("check_gradients: input ", leaves.size(), " is ", input),
               "pass float64 tensors");
    checker.values.push_back(ops::clone(input));
    leaves.push_back(variable(ops::clone(input), "input"));
  }
  for (Var* var : variables) {
    WEFT_CHECK(var->dtype() == kF64, str("check_gradients: a variable is ", *var),
               "convert the parameters to float64 first");
    var->set_grad({});
  }
  Var y = f(leaves);
  WEFT_CHECK(y.dtype() == kF64, str("check_gradients: the function returned ", y), "compute in float64");
  checker.weights = output_weights(y.shape(), options.seed);
  if (Var loss = sum_all(y * Var(checker.weights)); loss.wants_grad()) backward(loss);

  GradientCheck result;
  auto name = [&](size_t i) { return i < options.names.size() ? options.names[i] : str("input ", i); };
  for (size_t i = 0; i < leaves.size(); ++i) checker.compare(name(i), checker.values[i], leaves[i].grad(), i, result);
  for (size_t i = 0; i < variables.size(); ++i) {
    Tensor value = variables[i]->value();  // the memory that f reads
    checker.compare(name(leaves.size() + i), value, variables[i]->grad(), leaves.size() + i, result);
    variables[i]->set_grad({});
  }
  result.passed = result.worst_error <= 1;
  return result;
}

}  // namespace weft
