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

TEST(DataParallel, BatchesOfThePrefetcherAreTheStepsOfTheSource) {
  dist::run_thread_ranks(2, [&](dist::Communicator& comm) {
    LanguageModel a(tiny_options(), Rng(1)), b(tiny_options(), Rng(1));
    const TrainingOptions options{.micro_batch = 2, .ranks = {.comm = &comm}};
    Training whole(a, options), ahead(b, options);
    data::Prefetcher batches(data::samples_of_rank(uneven_rows, {.rank = comm.rank(), .ranks = 2, .micro_batch = 2}),
                             12);
    for (int step = 0; step < 2; ++step) {
      whole.step(uneven_rows, whole.num_samples(), 12);
      ahead.step(batches.next());
    }
    EXPECT_EQ(weights_of(a), weights_of(b));
    EXPECT_EQ(ahead.num_samples(), 24);
  });
}

TEST(DataParallel, EvaluationAndDiagnosticsAreThoseOfOneRank) {
  std::vector<int32_t> ids;
  for (int i = 0; i < 100; ++i) ids.push_back(i * i % kVocab == 3 ? 0 : i * 5 % kVocab);
  const data::ValidationWindows windows(
      data::Dataset(ids),
      {.context = kContext, .vocab = kVocab, .documents = data::DocumentRule::ends_with_id, .end_of_text = 0});
  Evaluation want, want_some;
  std::vector<std::pair<std::string, double>> want_diagnostics;
  for (int ranks : {1, 2, 3, 4}) {
    SCOPED_TRACE(str(ranks, " ranks"));
    dist::run_thread_ranks(ranks, [&](dist::Communicator& comm) {
      LanguageModel model(tiny_options(), Rng(1));
      Training training(model, {.micro_batch = 12 / ranks,
                                .keeps_documents_apart = true,
                                .diagnostics_every = 1,
                                .byte_lengths = std::vector<int64_t>(kVocab, 2),
                                .ranks = {.comm = &comm}});
      const StepResult step = training.step(rows_from, 0, 12);
      const Evaluation got = training.evaluate(windows), some = training.evaluate(windows, 40);
      if (ranks == 1) {
        want = got, want_some = some, want_diagnostics = step.diagnostics;
        EXPECT_GT(some.num_targets, 20);
        EXPECT_LE(some.num_targets, 40);
        return;
      }
      for (const auto& [a, b] : {std::pair(&got, &want), std::pair(&some, &want_some)}) {
        EXPECT_EQ(a->num_targets, b->num_targets);
        EXPECT_EQ(a->num_bytes, b->num_bytes);
        EXPECT_NEAR(a->nats, b->nats, 1e-4);
        EXPECT_NEAR(a->byte_nats, b->byte_nats, 1e-4);
        EXPECT_NEAR(a->standard_error, b->standard_error, 1e-5);
      }
      EXPECT_GT(want_diagnostics.size(), 0u);
      ASSERT_EQ(step.diagnostics.size(), want_diagnostics.size());
      for (size_t i = 0; i < want_diagnostics.size(); ++i) {
        EXPECT_EQ(step.diagnostics[i].first, want_diagnostics[i].first);
        if (want_diagnostics[i].first.ends_with("median")) continue;  // the mean of the ranks' medians
        EXPECT_NEAR(step.diagnostics[i].second, want_diagnostics[i].second,
                    1e-4 * std::max(1.0, std::abs(want_diagnostics[i].second)))
            << want_diagnostics[i].first;
      }
    });
  }
}

// A model of tokens that see no others, so that ranks may have any of a row's.
struct Bigrams : Module {
  Embedding embedding{kVocab, 8, Rng(1)};
  Linear head{8, kVocab, Rng(2)};
  Bigrams() { name_parts({{"embedding", embedding}, {"head", head}}); }
  TokenLoss loss() {
    return [this](const Tensor& ids, const Tensor& targets, Tokens&, double factor) {
      Var losses = cross_entropy(reshape(head(embedding(ids)), {-1, kVocab}), targets.reshape({-1}));
      return LanguageModelLoss{sum_all(losses) * factor, ops::cast(losses.value(), kF32).reshape(targets.shape())};
    };
  }
};

TEST(DataParallel, RanksMayHaveDifferentTokensOfTheSameRows) {
  auto train = [](int ranks, int per_row, Evaluation& evaluation) {
    std::vector<Numbers> weights;
    dist::run_thread_ranks(ranks, [&](dist::Communicator& comm) {
      Bigrams model;
      Training training(
          model, model.loss(),
          {.compute = kF64, .micro_batch = 2, .ranks = {.comm = &comm, .zero = 1, .ranks_per_row = per_row}});
      auto samples = [&](int64_t first, int64_t rows) {  // every second token of a row, say
        data::Batch batch = uneven_rows(first, rows);
        batch.positions = Tensor::empty(batch.tokens.shape(), kI32, Device::cpu());
        for (int64_t i = 0; i < rows * kContext; ++i)
          batch.positions.mutable_data<int32_t>()[i] = static_cast<int32_t>(i % kContext);
        for (Tensor* x : {&batch.tokens, &batch.targets, &batch.positions})
          *x = ops::contiguous(x->slice(1, comm.rank() % per_row, kContext, per_row));
        return batch;
      };
      for (int step = 0; step < 3; ++step) training.step(samples, training.num_samples(), 12);
      EXPECT_EQ(training.state().num_tokens, 3 * 12 * kContext);
      const Evaluation got =
          weft::evaluate(model.loss(), samples, 7, {.batch = 2, .comm = &comm, .ranks_per_row = per_row});
      if (comm.rank()) return;
      evaluation = got;
      for (const NamedParam& p : model.params()) weights.push_back(numbers_of(p.param->value()));
    });
    return weights;
  };
  Evaluation evaluation, of_one;
  const std::vector<Numbers> want = train(1, 1, of_one);
  for (auto [ranks, per_row] : {std::pair{2, 2}, {4, 2}, {4, 4}}) {
    SCOPED_TRACE(str(ranks, " ranks, ", per_row, " per row"));
    expect_close(train(ranks, per_row, evaluation), want, std::vector<std::string>(want.size(), "a weight"), kExact);
    EXPECT_EQ(evaluation.num_targets, of_one.num_targets);
    EXPECT_NEAR(evaluation.nats, of_one.nats, 1e-4);
    EXPECT_NEAR(evaluation.standard_error, of_one.standard_error, 1e-6);
  }
}

TEST(DataParallel, AStopOfOneRankIsOneOfAll) {
  dist::run_thread_ranks(3, [](dist::Communicator& comm) {
    EXPECT_TRUE(on_any_rank(&comm, comm.rank() == 2));
    EXPECT_FALSE(on_any_rank(&comm, false));
  });
  EXPECT_TRUE(on_any_rank(nullptr, true));
}

// What is thrown when each of `ranks` makes a training of tiny_options() and calls f with it.
std::string error_on_ranks(int ranks, TrainingOptions options, const std::function<void(Training&, int)>& f,
                           std::initializer_list<std::string_view> parts) {
  return error_of(
      [&] {
        dist::run_thread_ranks(ranks, [&](dist::Communicator& comm) {
          LanguageModel model(tiny_options(), Rng(1));
          TrainingOptions mine = options;
          mine.ranks.comm = &comm;
          Training training(model, mine);
          f(training, comm.rank());
        });
      },
      parts);
}

TEST(DataParallel, RefusesWhatRanksCannotShare) {
  EXPECT_EQ(
      error_on_ranks(4, {}, [](Training& t, int) { t.step(rows_from, 0, 6); },
                     {"6 rows of a step do not divide among 4 ranks", "use 1, 2, 3, 6 ranks, or a multiple of 4 rows"}),
      "");
  EXPECT_EQ(error_on_ranks(2, {}, [](Training& t, int rank) { t.step(rows_from(0, rank + 1)); },
                           {"rows here, of 3 on all 2 ranks", "same number of rows"}),
            "");
  auto nothing = [](Training&, int) {};
  EXPECT_EQ(error_on_ranks(2, {.ranks = {.zero = 3}}, nothing, {"ranks.zero is 3", "0, 1 or 2"}), "");
  EXPECT_EQ(error_on_ranks(3, {.ranks = {.ranks_per_row = 2}}, nothing, {"ranks_per_row is 2", "3 ranks"}), "");
  EXPECT_EQ(error_of(
                [&] {
                  dist::run_thread_ranks(3, [](dist::Communicator& comm) {
                    LanguageModel model(tiny_options(), Rng(comm.rank() == 2 ? 2 : 1));
                    Training training(model, {.ranks = {.comm = &comm}});
                  });
                },
                {"ranks 0 and 2 have different models, from embedding", "same options and seed"}),
            "");
  LanguageModel model(tiny_options(), Rng(1));
  EXPECT_EQ(error_of([&] { Training t(model, {.ranks = {.zero = 1}}); }, {"ranks.zero is 1 without ranks.comm"}), "");
}

TEST(DataParallel, ARankThatFailsInAStepEndsTheOthers) {
  for (int zero : {0, 2}) {
    auto loss_of = [](LanguageModel& model, int rank) -> TokenLoss {
      return [&model, rank](const Tensor& ids, const Tensor& targets, Tokens& tokens, double factor) {
        LanguageModelLoss result = model.loss(ids, targets, tokens, factor);
        // Half of backward is done, and buckets are on their way.
        if (rank == 1)
          model.params()[3].param->var().on_step_grad([](Tensor&) { fail("the disk is full", "make room"); });
        return result;
      };
    };
    EXPECT_EQ(error_of(
                  [&] {
                    dist::run_thread_ranks(3, [&](dist::Communicator& comm) {
                      LanguageModel model(tiny_options(), Rng(1));
                      Training training(model, loss_of(model, comm.rank()),
                                        {.ranks = {.comm = &comm, .zero = zero, .bucket_bytes = 1}});
                      training.step(rows_from, 0, 6);
                    });
                  },
                  {"the disk is full"}),
              "");
  }
}

}  // namespace
}  // namespace weft
