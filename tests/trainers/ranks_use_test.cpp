// Finished runs that several ranks evaluate, analyse and sample, through the command: what they give is what one rank gives.
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "tests/trainers/process.h"
#include "tests/trainers/run_fixture.h"
#include "trainers/console/console.h"
#include "trainers/run/session.h"
#include "weft/comm/communicator.h"
#include "weft/core/error.h"
#include "weft/io/metrics.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

class RanksOfARun : public test::RunFixture {
 protected:
  test::ProcessResult run(const std::string& name, int ranks, std::vector<std::string> more) const {
    more.push_back("--ranks");
    more.push_back(std::to_string(ranks));
    return test::run_weft(train(name, more));
  }
};

// A set that does not divide, and lengths of which neither number of ranks is a divisor.
TEST_F(RanksOfARun, EvaluateARunAsOneRankDoes) {
  ASSERT_EQ(run("a", 2, {"parallel.context=2", "train.tokens=1280"}).exit_code, 0);
  const std::string lengths = "--lengths";
  auto evaluate = [&](std::vector<std::string> more) {
    more.insert(more.begin(), {"eval", path("a"), lengths, "32,17", "--by-position"});
    return test::run_weft(more);
  };
  const test::ProcessResult one = evaluate({"parallel.context=1"});
  ASSERT_EQ(one.exit_code, 0) << one.err;
  EXPECT_NE(one.out.find("length 17: validation loss "), std::string::npos) << one.out;
  for (const auto& more : std::vector<std::vector<std::string>>{{"--ranks", "2"},
                                                                {"--ranks", "4"},
                                                                {"--ranks", "3", "parallel.context=1"},
                                                                {"--ranks", "3", "parallel.context=3"}}) {
    const test::ProcessResult many = evaluate(more);
    EXPECT_EQ(many.exit_code, 0) << many.err;
    EXPECT_EQ(many.out, one.out) << more.back();
  }
  const test::ProcessResult wrong = evaluate({"--ranks", "3"});
  EXPECT_EQ(wrong.exit_code, 2) << wrong.err;
  EXPECT_NE(wrong.err.find("--ranks 3: the run has parallel.context=2"), std::string::npos) << wrong.err;
}

// Of a checkpoint whole rows by any number of ranks: the values of one rank. By ranks that share rows, also during a training: to the order of
// sums.
TEST_F(RanksOfARun, AnalyseAsOneRankDoes) {
  ASSERT_EQ(run("a", 2, {"parallel.context=2", "log.analysis_every=20", "checkpoint.keep_last=10"}).exit_code, 0);
  const std::string weights = path("a") + "@20";
  const test::ProcessResult one = test::run_weft({"analyse", weights, "--json"});
  ASSERT_EQ(one.exit_code, 0) << one.err;
  const nlohmann::json expected = nlohmann::json::parse(one.out)["values"];
  ASSERT_GT(expected.size(), 50u);
  auto values_of = [&](std::vector<std::string> more) {
    std::vector<std::string> words{"analyse", weights, "--json"};
    words.insert(words.end(), more.begin(), more.end());
    const test::ProcessResult many = test::run_weft(words);
    EXPECT_EQ(many.exit_code, 0) << many.err;
    return nlohmann::json::parse(many.out)["values"];
  };
  for (const char* ranks : {"2", "3"})
    EXPECT_EQ(values_of({"--ranks", ranks, "parallel.context=1"}), expected) << ranks;
  const nlohmann::json shared = values_of({"--ranks", "2"});
  auto expect_near = [&](const nlohmann::json& values, const std::string& what) {
    EXPECT_EQ(values.size(), expected.size()) << what;
    for (const auto& [name, value] : expected.items())
      EXPECT_NEAR(values[name].get<double>(), value.get<double>(), 1e-4 * std::max(1.0, std::abs(value.get<double>())))
          << what << ": " << name;
  };
  expect_near(shared, "2 ranks");
  expect_near(values_of({"--ranks", "4"}), "2 data x 2 context");
  expect_near(values_of({"--ranks", "3", "parallel.context=3", "parallel.layout=striped", "parallel.block=4"}),
              "striped");
  const test::ProcessResult wrong = test::run_weft({"analyse", weights, "--ranks", "3"});
  EXPECT_EQ(wrong.exit_code, 2) << wrong.err;
  EXPECT_NE(wrong.err.find("--ranks 3: the run has parallel.context=2"), std::string::npos) << wrong.err;
  int count = 0;
  for (const auto& record : io::read_metrics(path("a") + "/metrics.jsonl")) {
    if (record.kind != "analysis") continue;
    ++count;
    EXPECT_EQ(record.step, 20);
    for (const auto& [name, value] : record.values) EXPECT_EQ(value, shared[name].get<double>()) << name;
  }
  EXPECT_EQ(count, 1);
}

// Padding is no token of an analysis: that of a text shorter than a row, and that of ranks that do not divide it.
TEST_F(RanksOfARun, AnalyseAShortTextAsOneRankDoes) {
  write("short.txt", "line 7 of a text that repeats itself 40\n");
  ASSERT_EQ(run("a", 1, {"model.context=64", "train.tokens=1280", str("data.val={path:\"", path("short.txt"), "\"}")})
                .exit_code,
            0);
  auto values_of = [&](std::vector<std::string> more) {
    more.insert(more.begin(), {"analyse", path("a"), "--json"});
    const test::ProcessResult result = test::run_weft(more);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return nlohmann::json::parse(result.out)["values"];
  };
  const nlohmann::json expected = values_of({});
  EXPECT_GT(expected.size(), 50u);
  EXPECT_EQ(values_of({"--ranks", "2"}), expected);
  for (const std::string ranks : {"2", "3"}) {
    const nlohmann::json values = values_of({"--ranks", ranks, "parallel.context=" + ranks});
    EXPECT_EQ(values.size(), expected.size()) << ranks;
    for (const auto& [name, value] : expected.items())
      EXPECT_NEAR(values[name].get<double>(), value.get<double>(), 1e-4 * std::max(1.0, std::abs(value.get<double>())))
          << ranks << " ranks: " << name;
  }
}

// The keys of a text are shared out; the text is that of one rank, also where the context is full and half of it is read again.
TEST_F(RanksOfARun, SampleAsOneRankDoes) {
  ASSERT_EQ(run("a", 1, {"train.tokens=1280"}).exit_code, 0);
  auto sample = [&](std::vector<std::string> more) {
    std::vector<std::string> words{"sample", path("a"), "--prompt", "line", "--tokens", "60", "--n", "2"};
    words.insert(words.end(), more.begin(), more.end());
    return test::run_weft(words);
  };
  for (const char* temperature : {"0", "0.8"}) {
    const std::string expected = sample({"--temperature", temperature}).out;
    EXPECT_GT(expected.size(), 60u);
    for (const char* ranks : {"2", "3"}) {
      const test::ProcessResult together = sample({"--temperature", temperature, "--ranks", ranks});
      EXPECT_EQ(together.exit_code, 0) << together.err;
      EXPECT_EQ(together.out, expected) << ranks;
      EXPECT_EQ(together.err.find("checkpoint: "), together.err.rfind("checkpoint: ")) << "one rank speaks";
    }
  }
  EXPECT_EQ(sample({"--ranks", "2", "--json"}).out, sample({"--json"}).out);
  const test::ProcessResult refused = sample({"--ranks", "2", "--logits", path("logits")});
  EXPECT_EQ(refused.exit_code, 2) << refused.err;
  EXPECT_NE(refused.err.find("--ranks 2: --logits is written by one rank."), std::string::npos) << refused.err;
  EXPECT_FALSE(fs::exists(path("a") + "/sample")) << "flight records lie where those of the other commands do";
}

// A training may save or remove checkpoints while ranks begin: here each of them asks for another one.
TEST_F(RanksOfARun, LoadTheCheckpointThatTheFirstRankChose) {
  ASSERT_EQ(run("a", 1, {"train.tokens=1280", "checkpoint.keep_last=10"}).exit_code, 0);
  std::vector<int64_t> steps(3);
  std::vector<std::vector<float>> weights(3);
  dist::run_thread_ranks(3, [&](dist::Communicator& world) {
    cli::Console silent(cli::Verbosity::quiet, false);
    const auto rank = static_cast<size_t>(world.rank());
    const std::string reference = path("a") + std::vector<std::string>{"@5", "", "@10"}[rank];
    const train::LoadedRun run =
        train::load_on_ranks(reference, {}, silent, train::config_of_run(reference, {}, {}), &world);
    steps[rank] = run.step;
    weights[rank] = run.model->params().front().param->value().to_vector<float>();
  });
  EXPECT_EQ(steps, (std::vector<int64_t>{5, 5, 5}));
  EXPECT_EQ(weights[1] == weights[0], true);
  EXPECT_EQ(weights[2] == weights[0], true);
}

#ifdef WEFT_MPIEXEC
// As a run whose ranks shared sequences is evaluated and analysed without a launcher.
TEST_F(RanksOfARun, AProcessThatMpirunStartsAloneIsOneRank) {
  ASSERT_EQ(run("a", 2, {"parallel.context=2", "train.tokens=1280"}).exit_code, 0);
  for (const std::vector<std::string>& words : {std::vector<std::string>{"analyse", path("a"), "--json"},
                                                {"eval", path("a"), "--lengths", "32,17"},
                                                {"sample", path("a"), "--tokens", "50"}}) {
    std::vector<std::string> all{"/usr/bin/env", WEFT_MPI_ENVIRONMENT, WEFT_MPIEXEC, "-np", "1", WEFT_BINARY};
    all.insert(all.end(), words.begin(), words.end());
    const test::ProcessResult alone = test::run_program(all), plain = test::run_weft(words);
    EXPECT_EQ(alone.exit_code, 0) << words[0] << ": " << alone.err;
    EXPECT_EQ(plain.exit_code, 0) << words[0] << ": " << plain.err;
    EXPECT_EQ(alone.out, plain.out) << words[0];
  }
}
#endif

}  // namespace
}  // namespace weft
