// Conjugate gradients and the gradient of their solution.
#include "weft/autograd/solve.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/errors.h"
#include "tests/support/random.h"
#include "weft/autograd/functions.h"
#include "weft/autograd/gradient_check.h"

namespace weft {
namespace {

using test::error_of;
using test::random_normal;

// Rows of matrices M M^T + ridge I, M [rows, K, J].
SymmetricProduct products_of(const Var& m_RKJ, double ridge) {
  return [m_RKJ, ridge](const Var& p_RK) {
    Var along = matmul(transpose(m_RKJ, 1, 2), unsqueeze(p_RK, -1));
    return squeeze(matmul(m_RKJ, along), -1) + p_RK * ridge;
  };
}

double largest(const Var& x) {
  double most = 0;
  for (double v : cast(x, kF64).value().to_vector<double>()) most = std::max(most, std::abs(v));
  return most;
}

TEST(ConjugateGradients, SolveEveryRow) {
  for (int64_t K : {1, 2, 7, 16})
    for (int64_t J : {1, 5, 40}) {
      const Var m = random_normal({6, K, J}, "m", kF64), b = random_normal({6, K}, "b", kF64);
      const SymmetricProduct product = products_of(m, 0.3);
      const Tensor x = conjugate_gradients(b, product);
      EXPECT_LT(largest(product(x) - b), 1e-11) << K << ", " << J;
      const Tensor in_f32 = conjugate_gradients(cast(b, kF32), products_of(cast(m, kF32), 0.3));
      EXPECT_LT(largest(cast(Var(in_f32), kF64) - x), 1e-3 * (1 + largest(x))) << K << ", " << J;
    }
}

// A row does not depend on how long the others take, to the last bit.
TEST(ConjugateGradients, RowsDoNotTouchEachOther) {
  const Tensor m = random_normal({4, 8, 20}, "m"), b = random_normal({4, 8}, "b");
  const std::vector<float> all = conjugate_gradients(b, products_of(m, 0.01)).to_vector<float>();
  for (double size : {0.0, 1e-3, 1e3}) {  // of what the other rows are made of: they take fewer steps, or more
    Var mine = Tensor::from<float>({1, 0, 0, 0}, {4, 1}), others = Var(Tensor::full({4, 1}, size)) * (1.0 - mine);
    const Var changed = m * unsqueeze(mine + others, -1);
    const std::vector<float> got =
        conjugate_gradients(b * (mine + others), products_of(changed, 0.01)).to_vector<float>();
    for (size_t c = 0; c < 8; ++c) EXPECT_EQ(got[c], all[c]) << size;
  }
}

// A row whose squares leave the range of f32 is no solution.
TEST(ConjugateGradients, OfARowThatIsNotFiniteAreAnError) {
  const Var m = random_normal({2, 4, 9}, "m");
  const double huge = 1e30, nan = std::nan("");
  for (double bad : {huge, nan}) {
    const Var scale = Tensor::from<float>({1, static_cast<float>(bad)}, {2, 1});
    EXPECT_EQ(error_of(
                  [&] {
                    conjugate_gradients(Var(random_normal({2, 4}, "b")) * scale, products_of(m, 0.1));
                  },
                  {"residual", "not finite", "divide"}),
              "");
  }
}

TEST(ConjugateGradients, OfZeroAreZero) {
  const Tensor x =
      conjugate_gradients(Tensor::zeros({3, 5}, kF64), products_of(random_normal({3, 5, 5}, "m", kF64), 1));
  for (double v : x.to_vector<double>()) EXPECT_EQ(v, 0);
  EXPECT_EQ(conjugate_gradients(Tensor::zeros({0, 5}), [](const Var& p) { return p; }).num_elements(), 0);
}

TEST(ImplicitSolution, HasTheGradientOfTheSolution) {
  auto solved = [](std::span<const Var> in) {
    const SymmetricProduct fixed = products_of(in[0].detach(), 0.5);
    const Tensor x = conjugate_gradients(in[1].detach(), fixed);
    return implicit_solution(x, in[1] - products_of(in[0], 0.5)(x), fixed);
  };
  const Tensor inputs[] = {random_normal({3, 4, 6}, "m", kF64), random_normal({3, 4}, "b", kF64)};
  const GradientCheck result = check_gradients(solved, inputs, {}, {.names = {"m", "b"}});
  EXPECT_TRUE(result.passed) << result.report;
}

TEST(ImplicitSolution, RefusesOtherShapesAndDtypes) {
  auto identity = [](const Var& p) { return p; };
  EXPECT_EQ(error_of(
                [&] {
                  conjugate_gradients(Tensor::zeros({2, 3}, kBF16), identity);
                },
                {"conjugate_gradients: the right side is [2, 3] bf16", "cast it"}),
            "");
  EXPECT_EQ(error_of(
                [&] {
                  implicit_solution(Tensor::zeros({2, 3}), Tensor::zeros({2, 4}), identity);
                },
                {"implicit_solution: x is [2, 3]", "[2, 4]"}),
            "");
}

}  // namespace
}  // namespace weft
