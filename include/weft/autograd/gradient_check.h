// Compares the gradients of a function with central differences in float64; for the library's functions and for users' own.
//   auto result = check_gradients([](std::span<const Var> in) { return square(in[0]) * in[1]; }, {a, b});
//   EXPECT_TRUE(result.passed) << result.report;
#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "weft/autograd/var.h"

namespace weft {

struct GradientCheckOptions {
  double step = 1e-5;  // relative to max(1, |x|)
  double rtol = 1e-5, atol = 1e-7;
  int64_t max_elements = 64;  // per input; more are sampled, always including the first and the last
  uint64_t seed = 1;
  std::vector<std::string> names = {};  // of the inputs, for the report
};

struct GradientCheck {
  bool passed = true;
  int64_t num_checked = 0;
  double worst_error = 0;  // |analytic - numeric| / (atol + rtol max(|analytic|, |numeric|)); above 1 fails
  std::string report;      // names input, index and both values of the worst element
};

// `f` maps float64 variables to a Var of any shape, which is reduced with fixed random weights. Integer inputs belong into the capture.
// Extra `variables` that f reads (parameters) are checked like inputs.
GradientCheck check_gradients(const std::function<Var(std::span<const Var>)>& f, std::span<const Tensor> inputs,
                              std::span<Var* const> variables = {}, const GradientCheckOptions& options = {});

}  // namespace weft
