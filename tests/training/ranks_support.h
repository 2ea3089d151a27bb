// Trainings of several ranks, as threads, and what is compared between them.
#pragma once

#include <gtest/gtest.h>

#include <cmath>

#include "tests/training/support.h"
#include "weft/ops/elementwise.h"

namespace weft::test {

using Numbers = std::vector<double>;
inline Numbers numbers_of(const Tensor& x) { return ops::cast(x, kF64).to_vector<double>(); }

struct RankRun {
  int ranks = 1;
  int64_t steps = 4, rows = 12;  // per step, of all ranks
  LanguageModelOptions model = {};
  TrainingOptions training = {};  // micro_batch is that of all ranks
  data::SampleSource samples = {};
  bool keeps_gradients = true;
};

struct RankResult {
  std::vector<StepResult> steps;
  std::vector<std::vector<Numbers>> gradients;  // of each step, by parameter
  std::vector<std::string> names;
  std::vector<Numbers> weights, buffers;
  TrainingState state;
};

// An Optimizer whose gradients a test reads.
class ShownOptimizer final : public AnyOptimizer {
 public:
  ShownOptimizer(std::vector<ParamGroup> groups, std::vector<OptimizerParam> params,
                 std::vector<std::vector<Numbers>>* shown)
      : inner_(std::move(groups), std::move(params)), shown_(shown) {}
  void step(std::span<const Tensor> grads, double lr_factor, double grad_factor) override {
    if (shown_) {
      shown_->emplace_back();
      for (const Tensor& grad : grads) shown_->back().push_back(grad.defined() ? numbers_of(grad) : Numbers());
    }
    inner_.step(grads, lr_factor, grad_factor);
  }
  int64_t num_steps() const override { return inner_.num_steps(); }
  std::vector<std::pair<std::string, Tensor>> state() const override { return inner_.state(); }
  void load_state(std::span<const std::pair<std::string, Tensor>> state, int64_t num_steps) override {
    inner_.load_state(state, num_steps);
  }

 private:
  Optimizer inner_;
  std::vector<std::vector<Numbers>>* shown_;
};

// Rows whose numbers of targets differ much: every third one has a single target.
inline data::Batch uneven_rows(int64_t first, int64_t rows) {
  data::Batch batch = rows_from(first, rows);
  for (int64_t i = 0; i < rows * kContext; ++i)
    if ((first + i / kContext) % 3 == 0 && i % kContext != 2) batch.targets.mutable_data<int32_t>()[i] = -1;
  return batch;
}

// What rank 0 has; the weights of the others must be the same to the bit.
inline RankResult run_ranks(RankRun run) {
  RankResult result;
  std::vector<std::vector<Numbers>> weights(static_cast<size_t>(run.ranks));
  if (!run.samples) run.samples = uneven_rows;
  dist::run_thread_ranks(
      run.ranks,
      [&](dist::Communicator& comm) {
        const bool is_first = comm.rank() == 0;
        LanguageModel model(run.model, Rng(1));
        TrainingOptions options = run.training;
        options.micro_batch /= run.ranks;
        options.ranks.comm = &comm;
        if (run.keeps_gradients)
          options.optimizer = [&, groups = std::exchange(options.groups, {})](std::vector<OptimizerParam> params) {
            return std::make_unique<ShownOptimizer>(groups, std::move(params), is_first ? &result.gradients : nullptr);
          };
        Training training(model, options);
        for (int64_t step = 0; step < run.steps; ++step) {
          const StepResult got = training.step(run.samples, training.num_samples(), run.rows);
          if (is_first) result.steps.push_back(got);
        }
        for (const NamedParam& p : model.params())
          weights[static_cast<size_t>(comm.rank())].push_back(numbers_of(p.param->value()));
        if (!is_first) return;
        for (const NamedParam& p : model.params()) result.names.push_back(p.name);
        for (const NamedBuffer& b : model.buffers()) result.buffers.push_back(numbers_of(b.buffer->value()));
        result.state = training.state();
      },
      {.timeout_s = 120});
  for (const auto& each : weights) EXPECT_EQ(each, weights[0]) << "ranks have different weights";
  result.weights = weights[0];
  return result;
}

// To `error`, relative to the largest number of each tensor or 1.
inline void expect_close(const std::vector<Numbers>& got, const std::vector<Numbers>& want,
                         const std::vector<std::string>& names, double error) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t p = 0; p < got.size(); ++p) {
    ASSERT_EQ(got[p].size(), want[p].size());
    double most = 1, far = 0;
    for (double x : want[p]) most = std::max(most, std::abs(x));
    for (size_t i = 0; i < got[p].size(); ++i) {
      ASSERT_TRUE(std::isfinite(got[p][i])) << names[p];
      far = std::max(far, std::abs(got[p][i] - want[p][i]));
    }
    EXPECT_LE(far, error * most) << names[p];
  }
}

inline void expect_equal_runs(const RankResult& got, const RankResult& want, double error) {
  ASSERT_EQ(got.steps.size(), want.steps.size());
  for (size_t i = 0; i < got.steps.size(); ++i) {
    EXPECT_NEAR(got.steps[i].loss, want.steps[i].loss, error) << "step " << i;
    EXPECT_NEAR(got.steps[i].grad_norm, want.steps[i].grad_norm, error) << "step " << i;
    EXPECT_EQ(got.steps[i].num_targets, want.steps[i].num_targets) << "step " << i;
    EXPECT_EQ(got.steps[i].was_skipped, want.steps[i].was_skipped) << "step " << i;
  }
  ASSERT_EQ(got.gradients.size(), want.gradients.size());
  for (size_t i = 0; i < got.gradients.size(); ++i) {
    SCOPED_TRACE(str("gradients of step ", static_cast<int64_t>(i)));
    expect_close(got.gradients[i], want.gradients[i], want.names, error);
  }
  SCOPED_TRACE("weights");
  expect_close(got.weights, want.weights, want.names, error);
  EXPECT_EQ(got.buffers, want.buffers);
  EXPECT_EQ(got.state.num_samples, want.state.num_samples);
  EXPECT_EQ(got.state.num_tokens, want.state.num_tokens);
}

inline TrainingOptions f64_options() {
  return {.groups = {{.match = "layers.*.weight", .num_dims = 2, .algorithm = MuonOptions{}},
                     {.algorithm = AdamWOptions{.lr = 1e-2, .weight_decay = 0.01}}},
          .compute = kF64};
}

// Of one chosen head the weight would be 1, and the router's gradient nothing but rounding, which Muon makes large. A balance loss is a
// product of means over the rows of all ranks.
inline LanguageModelOptions expert_options() {
  LanguageModelOptions o = tiny_options();
  o.mixers = {SoftmaxOptions{.heads = 8, .head_mixture = {.active = 2, .balance_loss = 0.1, .has_running_load = true}}};
  return o;
}

}  // namespace weft::test
