// A training that ranks share equals the training of one rank on all rows: losses, gradients and weights.
#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <mutex>

#include "tests/support/errors.h"
#include "tests/training/ranks_support.h"

namespace weft {
namespace {

using namespace test;

constexpr double kExact = 1e-10;

TEST(DataParallel, EqualsOneRankWithAllRows) {
  for (bool are_experts : {false, true}) {
    SCOPED_TRACE(are_experts ? "experts" : "plain");
    RankRun run{.model = are_experts ? expert_options() : tiny_options(), .training = f64_options()};
    const RankResult want = run_ranks(run);
    EXPECT_EQ(want.gradients.size(), 4u);
    EXPECT_LT(want.steps.back().loss, want.steps.front().loss);
    for (int ranks : {2, 3, 4}) {
      SCOPED_TRACE(str(ranks, " ranks"));
      run.ranks = ranks;
      expect_equal_runs(run_ranks(run), want, kExact);
    }
  }
}

TEST(DataParallel, MicroBatchesOfAllRanksAreThoseOfOneRank) {
  RankRun run{.model = tiny_options(), .training = f64_options()};
  run.model.residual_dropout = 0.2;  // drawn by the number of the row among those of all ranks
  run.rows = 24;
  for (int64_t micro_batch : {24, 12}) {
    SCOPED_TRACE(str("micro-batch of ", micro_batch, " rows"));
    run.training.micro_batch = micro_batch;
    run.ranks = 1;
    const RankResult want = run_ranks(run);
    for (int ranks : {2, 3, 4}) {
      SCOPED_TRACE(str(ranks, " ranks"));
      run.ranks = ranks;
      expect_equal_runs(run_ranks(run), want, kExact);
    }
  }
}

TEST(DataParallel, ClipsByTheNormOfTheWholeGradient) {
  RankRun run{.model = tiny_options(), .training = f64_options()};
  run.training.clip_norm = 0.25;
  run.training.micro_batch = 6;
  const RankResult want = run_ranks(run);
  for (const StepResult& step : want.steps) EXPECT_GT(step.grad_norm, 0.25);
  run.ranks = 3;
  expect_equal_runs(run_ranks(run), want, kExact);
}

// The loss is not a number where a row begins with this id.
constexpr int32_t kPoison = 7;
TokenLoss poisoned(LanguageModel& model) {
  return [&model](const Tensor& ids, const Tensor& targets, Tokens& tokens, double factor) {
    LanguageModelLoss result = model.loss(ids, targets, tokens, factor);
    for (int64_t row = 0; row < ids.size(0); ++row)
      if (ids.data<int32_t>()[row * kContext] == kPoison) result.loss = result.loss * static_cast<double>(NAN);
    return result;
  };
}
data::Batch one_poisoned_row(int64_t first, int64_t rows) {  // sample 13, in the second step
  data::Batch batch = rows_from(first, rows);
  for (int64_t row = 0; row < rows; ++row)
    batch.tokens.mutable_data<int32_t>()[row * kContext] = first + row == 13 ? kPoison : 1;
  return batch;
}

TEST(DataParallel, GuardSkipsAStepOnAllRanksWhereOneHasNaN) {
  for (int zero : {0, 2}) {
    std::vector<std::vector<std::vector<float>>> weights(3);
    dist::run_thread_ranks(3, [&](dist::Communicator& comm) {
      LanguageModel model(tiny_options(), Rng(1));
      Training training(model, poisoned(model),
                        {.clip_norm = 1, .guard = {.is_on = true}, .ranks = {.comm = &comm, .zero = zero}});
      for (int step = 0; step < 3; ++step) {
        const auto before = weights_of(model);
        const StepResult got = training.step(one_poisoned_row, training.num_samples(), 12);
        EXPECT_EQ(got.was_skipped, step == 1);
        EXPECT_EQ(weights_of(model) == before, step == 1);
      }
      EXPECT_EQ(training.num_skipped(), 1);
      EXPECT_EQ(training.guard().window().size(), 2u);
      weights[static_cast<size_t>(comm.rank())] = weights_of(model);
    });
    EXPECT_EQ(weights[1], weights[0]);
    EXPECT_EQ(weights[2], weights[0]);
  }
  EXPECT_EQ(error_of(
                [&] {
                  dist::run_thread_ranks(3, [&](dist::Communicator& comm) {
                    LanguageModel model(tiny_options(), Rng(1));
                    Training training(model, poisoned(model), {.ranks = {.comm = &comm}});
                    for (int step = 0; step < 3; ++step) training.step(one_poisoned_row, training.num_samples(), 12);
                  });
                },
                {"step 1: loss nan", "switch the guard on"}),
            "");
}

// Layers of which each rank uses another; the last is used by none.
struct Experts : Module {
  Linear shared{3, 3, Rng(1)}, first{3, 1, Rng(2)}, second{3, 1, Rng(3)}, unused{3, 1, Rng(4)};
  Experts() { name_parts({{"shared", shared}, {"first", first}, {"second", second}, {"unused", unused}}); }
  Var loss(int64_t part) {
    Tensor x = Tensor::from<double>({1, 0, 2, -1, 1, 1}, {2, 3}).slice(0, part, part + 1);
    return sum_all(square((part ? second : first)(shared(x)) - 1.0));
  }
};

// What no rank uses stays as it is: without a gradient there is no decay either.
TEST(DataParallel, ParametersThatARankDoesNotUseAddZeros) {
  auto train = [](int ranks, int zero) {
    std::vector<Numbers> weights;
    dist::run_thread_ranks(ranks, [&](dist::Communicator& comm) {
      Experts model;
      Training training(model, {}, {.compute = kF64, .ranks = {.comm = &comm, .zero = zero, .bucket_bytes = 1}});
      for (int step = 0; step < 3; ++step)
        training.step(2 / ranks, [&](const MicroBatch& m) { return model.loss(comm.rank() + m.index); });
      if (comm.rank()) return;
      for (const NamedParam& p : model.params()) weights.push_back(numbers_of(p.param->value()));
    });
    return weights;
  };
  const std::vector<Numbers> want = train(1, 0);
  const std::vector<std::string> names(want.size(), "a weight");
  for (int zero : {0, 1, 2}) {
    const std::vector<Numbers> got = train(2, zero);
    expect_close(got, want, names, kExact);
    Experts untrained;
    const std::vector<NamedParam> params = untrained.params();
    for (size_t i = 0; i < params.size(); ++i)
      EXPECT_EQ(got[i] == numbers_of(params[i].param->value()), params[i].name.starts_with("unused")) << params[i].name;
  }
}

TEST(DataParallel, BucketsOfAnySizeGiveTheSameBits) {
  RankRun run{.ranks = 3, .model = tiny_options(), .keeps_gradients = false};
  run.training = {.clip_norm = 1, .compute = kBF16, .micro_batch = 6};
  const RankResult want = run_ranks(run);
  for (int64_t bytes : {1, 1000, 5000})
    for (bool overlaps : {true, false}) {
      run.training.ranks = {.bucket_bytes = bytes, .overlaps_backward = overlaps};
      const RankResult got = run_ranks(run);
      EXPECT_EQ(got.weights, want.weights) << bytes;
      EXPECT_EQ(got.steps.back().grad_norm, want.steps.back().grad_norm);
    }
}

// A second rank that has what this one has; it keeps the sizes of sums over gradients and when they came.
struct Log {
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<int64_t> counts;
  void add(int64_t count) {
    std::lock_guard lock(mutex);
    counts.push_back(count);
    changed.notify_all();
  }
  bool has(size_t count) {
    std::unique_lock lock(mutex);
    return changed.wait_for(lock, std::chrono::seconds(60), [&] { return counts.size() >= count; });
  }
};
class Mirror final : public dist::Communicator {
 public:
  Mirror(std::string name, Log& log) : Communicator(0, 2, std::move(name)), log_(log) {}
  void abort(std::string) noexcept override {}

 private:
  void run(const dist::Operation& operation, const void* from, void* to) override {
    const auto bytes = static_cast<size_t>(operation.count) * size_of(operation.dtype);
    if (operation.kind == dist::Collective::all_gather) {
      std::memcpy(to, from, bytes);
      std::memcpy(static_cast<char*>(to) + bytes, from, bytes);
      return;
    }
    ASSERT_EQ(operation.kind, dist::Collective::all_reduce);
    for (int64_t i = 0; i < operation.count; ++i)
      if (operation.dtype == kF32) static_cast<float*>(to)[i] *= 2;
      else if (operation.dtype == kF64) static_cast<double*>(to)[i] *= 2;
      else static_cast<int64_t*>(to)[i] *= 2;
    if (operation.dtype == kF32) log_.add(operation.count);
  }
  std::unique_ptr<dist::Transfer> start(std::span<const dist::Send>, std::span<const dist::Receive>) override {
    return nullptr;
  }
  std::unique_ptr<Communicator> split_off(const dist::Operation&, int, int, std::string name) override {
    return std::make_unique<Mirror>(std::move(name), log_);
  }
  Log& log_;
};

TEST(DataParallel, BucketsAreSummedInAFixedOrderWhileBackwardGoesOn) {
  Log log;
  Mirror comm("pair", log);
  LanguageModel model(tiny_options(), Rng(1)), alone(tiny_options(), Rng(1));
  Training training(model, {.micro_batch = 2, .ranks = {.comm = &comm, .bucket_bytes = 1}}), single(alone, {});
  const std::vector<NamedParam> params = model.params();
  std::vector<size_t> finals;
  std::vector<GradHook> hooks;
  for (size_t i = 0; i < params.size(); ++i)
    hooks.push_back(params[i].param->var().on_step_grad([&, i](Tensor&) {
      finals.push_back(i);
      // The last gradient waits for the sums of all others: they do not wait for the end of backward.
      if (i == 0) { EXPECT_TRUE(log.has(params.size() - 1)); }
    }));
  training.step(rows_from(0, 4));
  std::vector<int64_t> want;
  for (size_t i = params.size(); i-- > 0;) want.push_back(params[i].param->value().num_elements());
  EXPECT_EQ(log.counts, want) << "each once, though there are two micro-batches";
  std::reverse(finals.begin(), finals.end());
  EXPECT_FALSE(std::is_sorted(finals.begin(), finals.end())) << "gradients become final in another order";
  single.step(rows_from(0, 4));
  const auto got = weights_of(model), expected = weights_of(alone);
  for (size_t p = 0; p < got.size(); ++p)
    for (size_t i = 0; i < got[p].size(); ++i) EXPECT_NEAR(got[p][i], expected[p][i], 1e-6f);
}

}  // namespace
}  // namespace weft
