// In-context regression: rows x_1 y_1 x_2 y_2 .. with y = w . x + noise, each row with a w of its own. At x_i the model predicts y_i from the
// pairs before. What it reaches is compared with two predictors that know the task: one step of gradient descent on the earlier pairs
// (von Oswald et al., 2212.07677), and ridge regression, which nothing can beat. Where the map is piecewise linear, w is another on each side of a
// plane through 0 that the row draws too; then the two predictors still take it for a linear one, and can be beaten.
#pragma once

#include <array>
#include <string_view>

#include "trainers/tasks/sinks.h"

namespace weft::tasks {

struct RegressionSizes {
  int64_t width = 8;   // d: x is normal, and w normal with variance 1 / d
  int64_t pairs = 24;  // of a row
  double noise = 0.1;  // standard deviation
  bool is_piecewise = false;
};

// tokens [B, 2 pairs, width + 3]: x, y, a flag of y's tokens, 1; x [B, pairs, width] and y [B, pairs] by themselves. All f32 on the CPU, a pure
// function of (rng, first_row + row).
struct RegressionBatch {
  Tensor tokens, x, y;
};
RegressionBatch regression_batch(int64_t first_row, int64_t rows, const RegressionSizes& sizes, Rng rng);

// Predictions of y_i from the i pairs before, [B, pairs] f64 row by row. The step is the best one for so many pairs on average.
std::vector<double> gradient_step(const RegressionBatch& batch, const RegressionSizes& sizes);
std::vector<double> ridge(const RegressionBatch& batch, const RegressionSizes& sizes);

// The step's expected squared error after n pairs of a linear map, noise of the target included.
double gradient_step_error(int64_t n, const RegressionSizes& sizes);

// Squared errors of model, gradient step and ridge regression: of all predictions, of the last, and by the number of pairs before (kAfter and the
// number); and the model's gap to the gradient step.
inline constexpr std::array<std::string_view, 3> kAfter = {"error after ", "error of a step after ",
                                                           "error of ridge after "};
Figures regression(const MixerMaker& mixer, const Options& options);

}  // namespace weft::tasks
