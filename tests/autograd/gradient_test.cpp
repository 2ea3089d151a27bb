// Gradients of every differentiable function against central differences in float64. The functions are rows of rows.h.
#include <gtest/gtest.h>

#include "tests/autograd/rows.h"
#include "weft/autograd/functions.h"
#include "weft/autograd/gradient_check.h"
#include "weft/autograd/record.h"
#include "weft/ops/elementwise.h"

namespace weft {
namespace {

using namespace test;

void check(const Row& row) {
  SCOPED_TRACE(row.name);
  std::vector<Tensor> inputs = inputs_of(row);
  GradientCheck result = check_gradients(row.f, inputs);
  EXPECT_TRUE(result.passed) << result.report;
  EXPECT_GT(result.num_checked, 0);
}

TEST(Gradient, OfElementwiseFunctions) {
  for (const Row& row : elementwise_rows()) check(row);
}
TEST(Gradient, OfViewsReductionsAndLookups) {
  for (const Row& row : shape_rows()) check(row);
}
TEST(Gradient, OfProductsNormsAttentionAndLosses) {
  for (const Row& row : layer_rows()) check(row);
}

TEST(GradientCheck, FindsAPlantedErrorAndNamesIt) {
  auto wrong = [](In in) {
    return record("wrong", ops::square(in[0].value()), {in[0]}, [x = Saved(in[0].value())](const Tensor& dy, Wants) {
      Tensor dx = ops::square_backward(dy, x);
      dx.mutable_data<double>()[3] *= 1.001;
      return Grads{dx};
    });
  };
  Tensor x = Tensor::full({5}, 1.5, kF64);
  GradientCheck result = check_gradients(wrong, {&x, 1}, {}, {.names = {"x"}});
  EXPECT_FALSE(result.passed);
  EXPECT_NE(result.report.find("x[3]"), std::string::npos) << result.report;
}

}  // namespace
}  // namespace weft
