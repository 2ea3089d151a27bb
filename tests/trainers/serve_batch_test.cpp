// How requests become batches, and what an error in one leaves of the others.
#include <gtest/gtest.h>

#include <future>
#include <new>
#include <stdexcept>

#include "tests/support/errors.h"
#include "tests/trainers/serve_support.h"
#include "trainers/serve/request_error.h"

namespace weft {
namespace {

using namespace serve;
using serve_test::Engine;
using Ids = std::vector<int32_t>;

class ServeBatches : public ::testing::Test {
 protected:
  void SetUp() override { set_num_threads(1); }
};

TEST_F(ServeBatches, RowsThatAreThereTogetherAreOneBatchUpToALimit) {
  LanguageModel model(serve_test::tiny(serve_test::softmax()), Rng(3));
  const ServedModel served = serve_test::served(model);
  Engine engine(model, served, {.max_batch = 4, .max_wait_s = 0});
  const GenerationRow continued{.prompt = {1, 2}, .max_tokens = 3, .temperature = 0},
      scored{.prompt = {1}, .max_tokens = 1};
  engine.is_held = true;
  std::vector<std::thread> askers;
  for (int i = 0; i < 9; ++i) {
    askers.emplace_back([&, i] { EXPECT_EQ(engine.batcher.ask({i % 3 == 2 ? scored : continued}).size(), 1u); });
    while (i == 0 ? !engine.is_computing : engine.batcher.waiting() != i) std::this_thread::yield();
  }
  engine.is_held = false;
  for (std::thread& asker : askers) asker.join();
  EXPECT_EQ(engine.batcher.ask(std::vector<GenerationRow>(5, continued)).size(), 5u);
  engine.end();
  // The first one alone; five more are continued and three scored, in turn with the oldest.
  EXPECT_EQ(engine.batches, (std::vector<size_t>{1, 4, 3, 1, 4, 1}));
}

// A worker of batches whose rows with the id 13 fail.
class FailingWorker {
 public:
  explicit FailingWorker(const BatcherOptions& options)
      : batcher(options), thread_([this] {
          batcher.work(
              [this](std::span<const GenerationRow> rows) {
                ++calls;
                for (const GenerationRow& row : rows) {
                  if (row.goes_on) row.goes_on(row.prompt[0]);
                  if (row.prompt[0] == 13) fail("no memory", "ask for less");
                }
                return std::vector<Generation>(rows.size());
              },
              [this] { return ends_.load(); });
        }) {}
  ~FailingWorker() { end(); }
  void end() {
    ends_ = true;
    if (thread_.joinable()) thread_.join();
  }

  int calls = 0;
  Batcher batcher;

 private:
  std::atomic<bool> ends_{false};
  std::thread thread_;
};

TEST_F(ServeBatches, AnErrorEndsItsRequestAndTheNextAreAnswered) {
  FailingWorker worker({.max_batch = 2, .max_wait_s = 0});
  EXPECT_EQ(test::error_of([&] { worker.batcher.ask(std::vector<GenerationRow>(7, {.prompt = {13}})); }, {"no memory"}),
            "");
  EXPECT_EQ(worker.batcher.waiting(), 0) << "the other rows of the request are not computed";
  EXPECT_EQ(worker.batcher.ask(std::vector<GenerationRow>(3, {.prompt = {1}})).size(), 3u);
  worker.end();
  EXPECT_EQ(worker.calls, 4) << "a batch of 2, one of its rows alone, and 3 rows in 2 batches";
}

TEST_F(ServeBatches, AnErrorMeetsItsOwnRequestAlone) {
  FailingWorker worker({.max_batch = 3, .max_wait_s = 60});  // waits for the three
  std::vector<int32_t> told;
  std::thread good([&] {
    GenerationRow row{.prompt = {1}};
    row.goes_on = [&](int32_t id) { return told.push_back(id), true; };
    row.begins_anew = [&] { told.clear(); };
    EXPECT_EQ(worker.batcher.ask({row}).size(), 1u);
  });
  while (worker.batcher.waiting() < 1) std::this_thread::yield();
  std::thread other([&] { EXPECT_EQ(worker.batcher.ask({{.prompt = {2}}}).size(), 1u); });
  EXPECT_EQ(test::error_of([&] { worker.batcher.ask({{.prompt = {13}}}); }, {"no memory"}), "");
  good.join(), other.join();
  EXPECT_EQ(told, Ids{1}) << "the row that was tried twice has its ids once";
}

struct FailsToCopy {
  bool* fails;
  explicit FailsToCopy(bool* flag) : fails(flag) {}
  FailsToCopy(FailsToCopy&&) = default;
  FailsToCopy(const FailsToCopy& other) : fails(other.fails) {
    if (*fails) throw std::bad_alloc();
  }
  bool operator()(int32_t) const { return true; }
};

TEST_F(ServeBatches, WhatFailsBesideTheModelLeavesNobodyWaiting) {
  FailingWorker worker({.max_wait_s = 0});
  bool fails = false;
  std::vector<GenerationRow> rows(1);
  rows[0].prompt = {1}, rows[0].goes_on = FailsToCopy(&fails);
  fails = true;
  EXPECT_THROW(worker.batcher.ask(std::move(rows)), std::bad_alloc);
  std::promise<std::string> problem;
  worker.batcher.submit({{.prompt = {1}}}, [&](std::vector<Generation>, std::exception_ptr error) {
    if (!error) throw std::runtime_error("no answer");
    problem.set_value([&] {
      try {
        std::rethrow_exception(error);
      } catch (const std::exception& e) { return std::string(e.what()); }
    }());
  });
  EXPECT_EQ(problem.get_future().get(), "no answer");
  EXPECT_EQ(worker.batcher.ask({{.prompt = {1}}}).size(), 1u);
}

TEST_F(ServeBatches, WorkThatAnErrorEndsTellsWhoWaits) {
  Batcher batcher({});
  int status = 0;
  auto status_of = [](std::exception_ptr error) {
    try {
      std::rethrow_exception(error);
    } catch (const RequestError& e) { return e.status; }
  };
  batcher.submit({{.prompt = {1}}}, [&](auto, std::exception_ptr error) { status = status_of(error); });
  auto should_stop = []() -> bool { throw std::runtime_error("no signal"); };
  EXPECT_THROW(batcher.work([](auto) { return std::vector<Generation>(); }, should_stop), std::runtime_error);
  EXPECT_EQ(status, 503);
  EXPECT_THROW(batcher.ask({{.prompt = {1}}}), RequestError);
}

TEST_F(ServeBatches, WhoWaitsWhenTheWorkEndsIsTold) {
  Batcher batcher({.max_waiting = 3});
  std::vector<int> statuses;
  auto done = [&](std::vector<Generation>, std::exception_ptr error) {
    try {
      std::rethrow_exception(error);
    } catch (const RequestError& e) { statuses.push_back(e.status); }
  };
  auto submit = [&](size_t count) {
    try {
      batcher.submit(std::vector<GenerationRow>(count, {.prompt = {1}}), done);
      return 0;
    } catch (const RequestError& e) { return e.status; }
  };
  EXPECT_EQ(submit(2), 0);
  EXPECT_EQ(submit(2), 503) << "too many";
  batcher.work([](std::span<const GenerationRow>) { return std::vector<Generation>(); }, [] { return true; });
  EXPECT_EQ(statuses, std::vector<int>{503});
  EXPECT_EQ(submit(1), 503) << "ended";
}

}  // namespace
}  // namespace weft
