#include "trainers/tasks/regression.h"

#include <algorithm>
#include <cmath>

#include "weft/autograd/functions.h"
#include "weft/core/error.h"
#include "weft/optim/progress.h"
#include "weft/training/training.h"

namespace weft::tasks {

RegressionBatch regression_batch(int64_t first_row, int64_t rows, const RegressionSizes& sizes, Rng rng) {
  const int64_t d = sizes.width, n = sizes.pairs, C = d + 3;
  RegressionBatch batch{Tensor::zeros({rows, 2 * n, C}, kF32, Device::cpu()),
                        Tensor::empty({rows, n, d}, kF32, Device::cpu()),
                        Tensor::empty({rows, n}, kF32, Device::cpu())};
  auto* tokens = batch.tokens.mutable_data<float>();
  auto *x = batch.x.mutable_data<float>(), *y = batch.y.mutable_data<float>();
  for (int64_t r = 0; r < rows; ++r) {
    const Rng own = rng[static_cast<uint64_t>(first_row + r)];
    for (int64_t i = 0; i < n; ++i) {
      float *at_x = tokens + (r * 2 * n + 2 * i) * C, *at_y = at_x + C;
      for (int64_t c = 0; c < d; ++c)
        at_x[c] = x[(r * n + i) * d + c] = own["x"].normal(static_cast<uint64_t>(i * d + c));
      auto product = [&](std::string_view weights) {
        double sum = 0;
        for (int64_t c = 0; c < d; ++c)
          sum += static_cast<double>(at_x[c]) * static_cast<double>(own[weights].normal(static_cast<uint64_t>(c)));
        return sum / std::sqrt(static_cast<double>(d));
      };
      const bool is_behind = sizes.is_piecewise && product("plane") < 0;
      const double noise = sizes.noise * static_cast<double>(own["noise"].normal(static_cast<uint64_t>(i)));
      y[r * n + i] = at_y[d] = static_cast<float>(product(is_behind ? "w behind" : "w") + noise);
      at_y[d + 1] = 1;
      at_x[d + 2] = at_y[d + 2] = 1;
    }
  }
  return batch;
}

namespace {

struct Row {
  const float *x, *y;
  int64_t width;
  double of(int64_t i, int64_t c) const { return static_cast<double>(x[i * width + c]); }
  double target(int64_t i) const { return static_cast<double>(y[i]); }
};
Row row_of(const RegressionBatch& batch, int64_t r) {
  const int64_t n = batch.x.size(1), d = batch.x.size(2);
  return {batch.x.data<float>() + r * n * d, batch.y.data<float>() + r * n, d};
}

// With w = step / n sum of y_j x_j the expected squared error is step^2 (1 + (d + 1 + noise^2 d) / n) - 2 step + 1 for x of variance 1.
double best_step(int64_t n, const RegressionSizes& s) {
  const auto d = static_cast<double>(s.width);
  return n == 0 ? 0 : 1 / (1 + (d + 1 + s.noise * s.noise * d) / static_cast<double>(n));
}

// Solves a symmetric positive definite system by Cholesky, in place: b becomes the solution.
void solve(std::vector<double> a, std::vector<double>& b) {
  const size_t d = b.size();
  for (size_t j = 0; j < d; ++j) {
    for (size_t k = 0; k < j; ++k) a[j * d + j] -= a[j * d + k] * a[j * d + k];
    a[j * d + j] = std::sqrt(a[j * d + j]);
    for (size_t i = j + 1; i < d; ++i) {
      for (size_t k = 0; k < j; ++k) a[i * d + j] -= a[i * d + k] * a[j * d + k];
      a[i * d + j] /= a[j * d + j];
    }
  }
  for (size_t i = 0; i < d; ++i) {
    for (size_t k = 0; k < i; ++k) b[i] -= a[i * d + k] * b[k];
    b[i] /= a[i * d + i];
  }
  for (size_t i = d; i-- > 0;) {
    for (size_t k = i + 1; k < d; ++k) b[i] -= a[k * d + i] * b[k];
    b[i] /= a[i * d + i];
  }
}

double dot(const std::vector<double>& w, const Row& row, int64_t i) {
  double sum = 0;
  for (size_t c = 0; c < w.size(); ++c) sum += w[c] * row.of(i, static_cast<int64_t>(c));
  return sum;
}

}  // namespace

double gradient_step_error(int64_t n, const RegressionSizes& s) { return 1 - best_step(n, s) + s.noise * s.noise; }

std::vector<double> gradient_step(const RegressionBatch& batch, const RegressionSizes& sizes) {
  std::vector<double> out;
  for (int64_t r = 0; r < batch.x.size(0); ++r) {
    const Row row = row_of(batch, r);
    std::vector<double> sum(static_cast<size_t>(sizes.width));  // of y_j x_j
    for (int64_t i = 0; i < sizes.pairs; ++i) {
      out.push_back(i == 0 ? 0 : best_step(i, sizes) / static_cast<double>(i) * dot(sum, row, i));
      for (size_t c = 0; c < sum.size(); ++c) sum[c] += row.target(i) * row.of(i, static_cast<int64_t>(c));
    }
  }
  return out;
}

std::vector<double> ridge(const RegressionBatch& batch, const RegressionSizes& sizes) {
  const auto d = static_cast<size_t>(sizes.width);
  std::vector<double> out;
  for (int64_t r = 0; r < batch.x.size(0); ++r) {
    const Row row = row_of(batch, r);
    std::vector<double> products(d * d), sum(d);  // of x_j x_j^T, with the prior of w, and of y_j x_j
    for (size_t c = 0; c < d; ++c)
      products[c * d + c] = std::max(sizes.noise * sizes.noise, 1e-9) * static_cast<double>(sizes.width);
    for (int64_t i = 0; i < sizes.pairs; ++i) {
      std::vector<double> w = sum;
      solve(products, w);
      out.push_back(dot(w, row, i));
      for (size_t c = 0; c < d; ++c) {
        sum[c] += row.target(i) * row.of(i, static_cast<int64_t>(c));
        for (size_t e = 0; e < d; ++e)
          products[c * d + e] += row.of(i, static_cast<int64_t>(c)) * row.of(i, static_cast<int64_t>(e));
      }
    }
  }
  return out;
}

namespace {

// Layers of a norm and a mixer on a residual stream, between two linear maps.
class Regressor final : public Module {
 public:
  Regressor(const MixerMaker& make, int64_t in, int64_t tokens, int64_t layers, Rng rng)
      : in_(in, kDim, rng["in"], {.std = 1 / std::sqrt(static_cast<double>(in))}),
        out_(kDim, 1, rng["out"], {.std = 1 / std::sqrt(static_cast<double>(kDim))}) {
    const double std = 1 / std::sqrt(static_cast<double>(kDim));
    name_parts({{"in", in_}, {"out", out_}});
    for (int64_t i = 0; i < layers; ++i) {
      norms_.push_back(std::make_unique<Norm>(kDim, NormOptions{}));
      mixers_.push_back(make({.dim = kDim,
                              .context = tokens,
                              .layer = i,
                              .layers = layers,
                              .rotary = std::nullopt,
                              .std = std,
                              .out_std = std},
                             rng[static_cast<uint64_t>(i)]));
      name_part({str("norms.", i), *norms_.back()});
      name_part({str("layers.", i), *mixers_.back()});
    }
  }

  // [B, T, in] -> predictions at the tokens of x: [B, T / 2].
  Var operator()(const Var& tokens_BTC, Tokens& tokens) {
    Var h = in_(tokens_BTC);
    for (size_t i = 0; i < mixers_.size(); ++i) h = h + mixers_[i]->forward((*norms_[i])(h), tokens);
    return squeeze(slice(out_(h), 1, 0, tokens_BTC.size(1), 2), -1);
  }

 private:
  static constexpr int64_t kDim = 32;
  Linear in_, out_;
  std::vector<std::unique_ptr<Norm>> norms_;
  std::vector<std::unique_ptr<Mixer>> mixers_;
};

struct Errors {
  double all = 0;
  std::vector<double> after;  // so many pairs
};
Errors errors_of(const std::vector<double>& predictions, const std::vector<float>& y, int64_t pairs) {
  Errors errors{.all = 0, .after = std::vector<double>(static_cast<size_t>(pairs))};
  const auto rows = static_cast<double>(y.size()) / static_cast<double>(pairs);
  for (size_t i = 0; i < y.size(); ++i) {
    const double error = predictions[i] - static_cast<double>(y[i]);
    errors.all += error * error / static_cast<double>(y.size());
    errors.after[i % errors.after.size()] += error * error / rows;
  }
  return errors;
}

}  // namespace

Figures regression(const MixerMaker& mixer, const Options& options) {
  RegressionSizes sizes{.is_piecewise = options.is_piecewise};
  if (options.tokens > 0) sizes.pairs = std::max<int64_t>(options.tokens / 2, 1);
  const int64_t B = options.batch ? options.batch : 64, T = 2 * sizes.pairs;
  const int64_t steps = options.steps ? options.steps : 3000;
  Regressor model(mixer, sizes.width + 3, T, std::max<int64_t>(options.layers, 1), Rng(options.seed)["weights"]);
  const AdamWOptions adamw{.lr = options.lr > 0 ? options.lr : 1e-3, .beta2 = 0.99, .weight_decay = 0};
  Training training(model, {}, {.groups = {{.algorithm = adamw}}, .lr_factor = falling(steps), .clip_norm = 1});
  const Rng rows = Rng(options.seed)["regression"];
  for (int64_t step = 0; step < steps; ++step) {
    const RegressionBatch batch = regression_batch(step * B, B, sizes, rows);
    const Tensor in = to(batch.tokens, default_device()).value(), y = to(batch.y, default_device()).value();
    Tokens tokens(plain_tokens(B, T), {.is_training = true,
                                       .rng = Rng(options.seed)[static_cast<uint64_t>(step)],
                                       .progress = training_progress(step, steps)});
    training.step(1, [&](const MicroBatch&) { return mean_all(square(model(in, tokens) - Var(y))); });
  }
  constexpr int64_t kRows = 512;
  const RegressionBatch test = regression_batch(0, kRows, sizes, Rng(options.seed)["rows that were not trained on"]);
  NoGrad no_grad;
  Tokens tokens(plain_tokens(kRows, T));
  const auto y = test.y.to_vector<float>(),
             out = model(to(test.tokens, default_device()), tokens).value().to_vector<float>();
  const Errors own = errors_of({out.begin(), out.end()}, y, sizes.pairs),
               step = errors_of(gradient_step(test, sizes), y, sizes.pairs),
               best = errors_of(ridge(test, sizes), y, sizes.pairs);
  Figures figures{{"squared error", own.all},
                  {"of a gradient step", step.all},
                  {"of ridge", best.all},
                  {"gap to the step", own.all - step.all},
                  {"last error", own.after.back()},
                  {"last of a step", step.after.back()},
                  {"last of ridge", best.after.back()}};
  const Errors* all[] = {&own, &step, &best};
  for (size_t which = 0; which < kAfter.size(); ++which)
    for (size_t i = 0; i < all[which]->after.size(); ++i)
      figures.emplace_back(str(kAfter[which], i), all[which]->after[i]);
  return figures;
}

}  // namespace weft::tasks
