// What a training over ranks does beside its steps: evaluation, diagnostics, tokens of one row on several ranks, stops, and what it refuses.
#include <algorithm>

#include "tests/support/errors.h"
#include "tests/training/ranks_support.h"

namespace weft {
namespace {

using namespace test;

constexpr double kExact = 1e-10;

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
