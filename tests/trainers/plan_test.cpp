// weft plan as a process: what it prints as text and as JSON, exit codes, bad input. And what its figures for this machine are made of: a
// calibration, and the prediction of a run.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "tests/support/errors.h"
#include "tests/trainers/config_text.h"
#include "tests/trainers/process.h"
#include "tests/trainers/run_fixture.h"
#include "trainers/run/calibration.h"
#include "trainers/run/mesh_plan.h"
#include "trainers/run/prediction.h"
#include "weft/core/parallel.h"

namespace weft::train {
namespace {

class Plan : public test::RunFixture {
 protected:
  // 8 sequences of 1024 tokens in a step.
  test::ProcessResult plan(std::vector<std::string> more) const {
    std::vector<std::string> words{"plan",
                                   path("tiny.txtpb"),
                                   "model.vocab=300",
                                   "model.context=1024",
                                   "model.mixer=[{softmax{heads:4 kv_heads:2}}]",
                                   "train.micro_batch=1",
                                   "train.tokens_per_step=8192",
                                   "train.tokens=81920"};
    words.insert(words.end(), more.begin(), more.end());
    return test::run_weft(words);
  }
  void expect_refused(const std::vector<std::string>& more, int exit_code,
                      const std::vector<std::string>& parts) const {
    const test::ProcessResult result = plan(more);
    EXPECT_EQ(result.exit_code, exit_code) << result.out << result.err;
    for (const std::string& part : parts) EXPECT_NE(result.err.find(part), std::string::npos) << result.err;
    EXPECT_EQ(result.out, "");
  }
};

TEST_F(Plan, PrintsItsChoicesAsTextAndAsJson) {
  const std::vector<std::string> words = {"--ranks", "4", "--hardware", "h200", "parallel.context=4", "--rows", "3"};
  const test::ProcessResult text = plan(words);
  ASSERT_EQ(text.exit_code, 0) << text.err;
  EXPECT_EQ(text.err, "");
  for (const char* part :
       {"M parameters, ", "8 sequences of 1024 tokens", "h200: 690 TFLOP/s products", "fixed      context 4",
        " choices for 4 ranks", "tokens/s", "context 4, micro-batch ", "bidirectional_ring", "ulysses", "zigzag"})
    EXPECT_NE(text.out.find(part), std::string::npos) << part << "\n" << text.out;
  std::vector<std::string> as_json = words;
  as_json.push_back("--json");
  const test::ProcessResult result = plan(as_json);
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const nlohmann::json json = nlohmann::json::parse(result.out);
  ASSERT_GT(json["steps"].size(), 3u) << "JSON has all";
  double before = 0;
  int num_seen = 0;
  for (const auto& choice : json["steps"]) {
    EXPECT_EQ(choice["context"], 4);
    EXPECT_EQ(choice["data"], 1);
    EXPECT_TRUE(choice["fits"].get<bool>());
    EXPECT_GT(choice["bytes"], 0);
    EXPECT_TRUE(num_seen++ >= 3 || choice["is_dry_run"].get<bool>()) << "the rows that the text prints";
    EXPECT_GE(choice["step_s"], before) << "the fastest first";
    before = choice["step_s"];
  }
  EXPECT_EQ(json["traffic"].size(), dist::all_schemes().size());
  EXPECT_EQ(json["balance"].size(), 4u);
}

// One layer of Llama-3-8B, 2^20 tokens over 64 H200 in 8 nodes: what the command says of it are the printed times, as those of CostModel.
TEST_F(Plan, HasTheTimesOfTheWorkedExample) {
  write("layer.txtpb", R"(
model { vocab: 256 dim: 4096 layers: 1 context: 1048576 mixer { softmax { heads: 32 kv_heads: 8 } } ffn { swiglu { hidden: 14336 } } }
data { train { path: "text.txt" } val { fraction: 0.1 } }
train { tokens: 1048576 tokens_per_step: 1048576 compute: bf16 }
parallel { context: 64 }
)");
  struct Row {
    const char *scheme, *layout;
    double forward_ms, backward_ms, layer_ms;
  };
  double contiguous_s = 0, zigzag_s = 0;
  for (const Row& row : {Row{"ring", "contiguous", 465.5, 1454.6, 1951}, Row{"ring", "zigzag", 234.6, 733.0, 999},
                         Row{"usp", "zigzag", 235.4, 733.8, 1000}}) {
    SCOPED_TRACE(str(row.scheme, ", ", row.layout));
    const test::ProcessResult result =
        test::run_weft({"plan", path("layer.txtpb"), "--hardware", "h200", "--rows", "1", "--json",
                        str("parallel.scheme=", row.scheme), str("parallel.layout=", row.layout)});
    ASSERT_TRUE(result.exit_code == 0 || result.exit_code == 4) << result.err;  // whether it fits is not asked here
    const nlohmann::json json = nlohmann::json::parse(result.out);
    EXPECT_EQ(json["ranks"], 64);
    const nlohmann::json& step = json["steps"][0];
    EXPECT_EQ(step["scheme"], row.scheme);
    EXPECT_EQ(step["layout"], row.layout);
    const double attention_s = step["attention_s"], linear_s = step["linear_s"];
    EXPECT_NEAR(1e3 * attention_s, row.forward_ms + row.backward_ms, 0.1);
    EXPECT_NEAR(1e3 * (attention_s + linear_s), row.layer_ms, 0.6);
    (std::string(row.layout) == "contiguous" ? contiguous_s : zigzag_s) = attention_s + linear_s;
    for (const auto& traffic : json["traffic"]) {
      if (traffic["scheme"] != "ring") continue;
      // 63 hops of keys and values, 67.1 MB each, and a position for each of their tokens.
      EXPECT_NEAR(traffic["forward_bytes"].get<double>() / 63 / 1e6, 67.1 + 4 * 16384 / 1e6, 0.05);
    }
    if (std::string(row.scheme) == "ring" && std::string(row.layout) == "zigzag") {
      EXPECT_NEAR(contiguous_s / zigzag_s, 1.95, 0.005);
    }
  }
}

TEST_F(Plan, TellsThatNothingFits) {
  const test::ProcessResult result = plan({"--hardware", "h200", "train.memory_gib=1e-4", "--json"});
  EXPECT_EQ(result.exit_code, 4) << result.err;
  const nlohmann::json json = nlohmann::json::parse(result.out);
  ASSERT_FALSE(json["steps"].empty());
  for (const auto& choice : json["steps"]) EXPECT_FALSE(choice["fits"].get<bool>());
  EXPECT_EQ(plan({"--hardware", "h200"}).exit_code, 0);
}

// Nothing is planned that a training would refuse: what is left are ranks with whole sequences.
TEST_F(Plan, OfAMixerThatCannotShareASequence) {
  const std::vector<std::string> words = {"--ranks", "2", "--hardware", "h200", "model.mixer=[{multi_token{heads:2}}]"};
  const test::ProcessResult result = plan(words);
  ASSERT_EQ(result.exit_code, 0) << result.err;
  for (const char* part : {"fixed      context 1", "left out   choices that cannot be: model.mixer[0] convolves"})
    EXPECT_NE(result.out.find(part), std::string::npos) << part << "\n" << result.out;
  std::vector<std::string> as_json = words;
  as_json.push_back("--json");
  const nlohmann::json json = nlohmann::json::parse(plan(as_json).out);
  EXPECT_FALSE(json["steps"].empty());
  for (const auto& choice : json["steps"]) EXPECT_EQ(choice["context"], 1);
}

TEST_F(Plan, RefusesWhatItCannotPlan) {
  expect_refused({"--ranks", "3", "--hardware", "h200", "parallel.context=3", "parallel.scheme=ulysses"}, 2,
                 {"3 ranks cannot share 8 sequences of 1024 tokens", "ulysses: 4 query heads for 3 ranks"});
  expect_refused({"--hardware", "h300"}, 2, {"--hardware h300: no such hardware", "h200"});
  expect_refused({"--ranks", "0"}, 2, {"--ranks"});
  expect_refused({"--ranks", "3", "--hardware", "h200", "parallel.context=2"}, 2,
                 {"3 ranks cannot share 8 sequences of 1024 tokens with context 2", "--ranks"});
  expect_refused({"--ranks", "7", "--context", "1", "--hardware", "h200"}, 2, {"7 ranks cannot share 8 sequences"});
  expect_refused({"--documents", path("missing.csv"), "--hardware", "h200"}, 1, {"missing.csv"});
  write("lengths.csv", "from,to,share\n1,ten,0.5\n");
  expect_refused({"--documents", path("lengths.csv"), "--hardware", "h200"}, 1, {"lengths.csv", "ten"});
  expect_refused({"model.context=-1"}, 2, {"model.context"});
  write("grid.txtpb", "base: \"tiny.txtpb\"\naxis { name: \"a\" arm { name: \"b\" } }\n");
  const test::ProcessResult grid = test::run_weft({"plan", path("grid.txtpb")});
  EXPECT_EQ(grid.exit_code, 2);
  EXPECT_NE(grid.err.find("weft ablate"), std::string::npos) << grid.err;
  const test::ProcessResult bare = test::run_weft({"plan", path("tiny.txtpb")});
  EXPECT_EQ(bare.exit_code, 2);
  EXPECT_NE(bare.err.find("model.vocab is not set"), std::string::npos) << bare.err;
}

// Figures of this machine: rates that can be, and times that add up to what a step takes.
TEST_F(Plan, OfThisMachineMeasuresIt) {
  const test::ProcessResult result = plan({"--json", "train.threads=1"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const nlohmann::json json = nlohmann::json::parse(result.out), best = json["steps"][0];
  EXPECT_GT(best["step_s"], 0);
  EXPECT_GE(best["step_s"].get<double>(), best["attention_s"].get<double>());
  EXPECT_EQ(best["gradients_sent_bytes"], 0) << "one rank";
}

MemorySubject subject(int64_t layers, int64_t context = 128) {
  return {.model = {.vocab = 100,
                    .dim = 64,
                    .layers = layers,
                    .context = context,
                    .mixers = {SoftmaxOptions{.heads = 4}},
                    .ffn = {.hidden = 128}},
          .groups = {{}},
          .rows_per_step = 4};
}
dist::AttentionLayers layers_of(int64_t layers) {
  return {.layers = layers, .heads = 4, .kv_heads = 4, .key_width = 16, .value_width = 16};
}

// What is timed are small models; the sums are those of the whole. Times of a shared machine are rough, orders of size are not.
TEST(Calibration, GrowsWithTheLayersThatItDoesNotRun) {
  set_num_threads(1);
  const dist::AttentionLayers few = layers_of(2), many = layers_of(64);
  const Calibration small = calibrate(subject(2), {&few, 1}, 4, 2e10),
                    large = calibrate(subject(64), {&many, 1}, 4, 2e10);
  for (const Calibration* c : {&small, &large}) {
    EXPECT_TRUE(std::isfinite(c->other_s_per_token) && std::isfinite(c->update_s));
    ASSERT_EQ(c->attention.size(), 1u);
    EXPECT_GT(c->attention[0].forward_flops, 1e6);
    EXPECT_GT(c->attention[0].backward_flops, 1e6);
    EXPECT_GT(c->copy_bytes_per_s, 1e6);
  }
  EXPECT_GT(large.other_s_per_token, 4 * small.other_s_per_token);
  EXPECT_LT(large.other_s_per_token, 256 * small.other_s_per_token);
}

// Something else uses the machine in three of the calls: more of them are made, until most are as fast as the fastest.
TEST(Calibration, OfAMachineThatIsDisturbedIsMadeOfMoreCalls) {
  int calls = 0;
  auto seconds = [&](int disturbed) {
    calls = 0;
    return median_seconds([&] {
      const bool is_slow = ++calls > 2 && calls <= 2 + disturbed;
      std::this_thread::sleep_for(std::chrono::milliseconds(is_slow ? 100 : 10));
    });
  };
  EXPECT_LT(seconds(3), 0.05);
  EXPECT_GT(calls, kTimedCalls);
  EXPECT_GT(seconds(100), 0.05) << "a machine that stays slow is measured as it is";
}

// The rate of attention is that of its operations: a window of a quarter of the tokens does not change it much.
TEST(Calibration, OfAttentionCountsWhatIsSeen) {
  set_num_threads(1);
  dist::AttentionLayers whole = layers_of(1), windowed = whole;
  windowed.window = 256;
  MemorySubject s = subject(1, 1024);
  const double full = calibrate(s, {&whole, 1}, 1, 1e9).attention.at(0).forward_flops;
  s.model.mixers = {SoftmaxOptions{.heads = 4, .window = 256}};
  const double part = calibrate(s, {&windowed, 1}, 1, 1e9).attention.at(0).forward_flops;
  EXPECT_GT(part / full, 0.2);
  EXPECT_LT(part / full, 5);
}

// Without layers of attention that a plan knows, all of a step is counted by its tokens.
TEST(Calibration, NeedsNoAttention) {
  set_num_threads(1);
  MemorySubject s = subject(2);
  const Calibration c = calibrate(s, {}, 4, 1e9);
  EXPECT_GT(c.other_s_per_token, 0);
  EXPECT_TRUE(c.attention.empty()) << "not measured";
}

// The whole is timed where it is not too long; then rows are shortened, as many tokens as there were, then layers left out, then rows.
TEST(TimedTraining, TakesTheLargestPartThatIsNotTooLong) {
  const TimedTraining timed(subject(12, 4096));
  auto expect_part = [&](double flops, int64_t few, int64_t more, int64_t rows, int64_t context) {
    const TimedPart part = timed.part(4, flops);
    SCOPED_TRACE(flops);
    EXPECT_EQ(part.few, few);
    EXPECT_EQ(part.more, more);
    EXPECT_EQ(part.rows, rows);
    EXPECT_EQ(part.context, context);
  };
  const double whole = kTimedCalls * timed.flops(12, 4, 4096),
               tried = timed.flops(1, 4, 4096) + timed.flops(2, 4, 4096);
  expect_part(whole, 12, 12, 4, 4096);
  expect_part(0.99 * whole, 1, 8, 4, 4096);
  expect_part(0.99 * kTimedCalls * tried, 1, 4, 8, 2048);
  expect_part(1.01 * kTimedCalls * (timed.flops(1, 32, 512) + timed.flops(2, 32, 512)), 1, 2, 32, 512);
  expect_part(1, 1, 2, 1, 64);
  EXPECT_EQ(TimedTraining(subject(2)).part(4, 1).more, 2) << "few layers are not left out";
}

// Patterns of what is frozen name layers, and a teacher has its own.
TEST(TimedTraining, LeavesNoLayersOutThatAreNamed) {
  MemorySubject s = subject(12, 4096);
  const double alone = TimedTraining(s).flops(12, 4, 4096);
  EXPECT_LT(TimedTraining(s).part(4, 1).more, 12);
  s.start.frozen = {"layers.11."};
  EXPECT_EQ(TimedTraining(s).part(4, 1).few, 12);
  s.start = {.frozen = {}, .trained = {"layers.11."}};
  EXPECT_EQ(TimedTraining(s).part(4, 1).few, 12);
  s.start = {}, s.teacher = s.model;
  const TimedTraining taught(s);
  EXPECT_DOUBLE_EQ(taught.flops(12, 4, 4096), alone * 4 / 3) << "a forward of the teacher";
  const TimedPart part = taught.part(4, 1);
  EXPECT_EQ(part.few, 12);
  EXPECT_EQ(part.more, 12);
  EXPECT_EQ(part.context, 64);
  EXPECT_EQ(taught.part(4, 1.01 * kTimedCalls * alone).context, 2048) << "with its teacher the whole is too long";
}

// A step of a run is its update and its micro-batches, whatever part of it was timed: exact where times are straight lines.
TEST(TimedTraining, GrowsWithTheMicroBatchesTheRowsAndTheLayersThatItDoesNotTime) {
  const MemorySubject s = subject(12, 2048);
  const TimedTraining sizes_alone(s);
  auto update = [](int64_t layers) { return 1e-4 + 1e-5 * static_cast<double>(layers); };
  auto micro_batch = [&](int64_t layers, int64_t rows, int64_t context) {
    return 1e-11 * sizes_alone.flops(layers, rows, context);
  };
  double longest = 0;
  auto seconds = [&](int64_t rows, int64_t micro_batches, double flops) {
    longest = 0;
    return time_step(s, {}, {.context = 2048, .micro_batch = rows, .micro_batches = micro_batches}, nullptr, flops, {},
                     [&](int64_t layers, int64_t of, int64_t context, int64_t m) {
                       longest = std::max(longest, micro_batch(layers, of, context));
                       return update(layers) + static_cast<double>(m) * micro_batch(layers, of, context);
                     });
  };
  for (int64_t rows : {1, 8})
    for (int64_t micro_batches : {1, 4})
      for (double part : {1.0, 0.5, 0.01, 1e-6}) {
        SCOPED_TRACE(str(rows, " rows, ", micro_batches, " micro-batches, ", part));
        const double whole = micro_batch(12, rows, 2048),
                     step = static_cast<double>(micro_batches) * whole + update(12);
        EXPECT_NEAR(seconds(rows, micro_batches, part * kTimedCalls * whole / 1e-11) / step, 1, 1e-9);
        EXPECT_EQ(longest < whole, part < 1) << "a part of it was timed";
      }
}

// Ranks time their trainings together, as they will train: every rank has a time, and none waits for another for ever.
TEST(TimedTraining, TimesRanksThatShareRows) {
  set_num_threads(2);
  for (dist::Scheme scheme : {dist::Scheme::ring, dist::Scheme::ulysses}) {
    SCOPED_TRACE(str(scheme));
    MemorySubject s = subject(2, 512);
    s.parallel = {.data = 1, .context = 2, .layout = dist::LayoutKind::zigzag, .scheme = scheme};
    const dist::AttentionLayers a = layers_of(2);
    for (double flops : {1e12, 1e7}) {
      std::vector<double> seconds(2);
      dist::run_thread_ranks(2, [&](dist::Communicator& world) {
        Team team(world, as_said(s.parallel));
        seconds[static_cast<size_t>(world.rank())] =
            time_step(s, {&a, 1}, {.context = 512, .micro_batch = 2, .micro_batches = 2}, &team, flops);
      });
      for (double of_rank : seconds) EXPECT_TRUE(of_rank > 0 && std::isfinite(of_rank));
    }
  }
  set_num_threads(1);
}

TEST(Prediction, HasTheMessagesOfTheDryRunAndOfTheGradients) {
  set_num_threads(1);
  const std::vector<std::string> sizes = {"model.vocab=300", "model.context=64", "train.tokens=64KiB",
                                          "train.tokens_per_step=512", "train.micro_batch=2"};
  auto predicted = [&](std::vector<std::string> more, MemoryEstimate* estimate) {
    more.insert(more.begin(), sizes.begin(), sizes.end());
    const config::Loaded config = config::test::load_string(config::test::kTiny, more);
    *estimate = check_memory(config, 300, false);
    return predict(config, 300, *estimate);
  };
  MemoryEstimate estimate;
  const Prediction one = predicted({}, &estimate);
  EXPECT_EQ(one.peak_bytes, estimate.peak_bytes);
  EXPECT_EQ(one.sent_bytes, 0);
  EXPECT_GT(one.step_s, 0);
  const Prediction two = predicted({"parallel.data=2", "train.micro_batch=1"}, &estimate);
  // An all-reduce of m bytes over P ranks sends 2 (P - 1) / P m.
  EXPECT_EQ(two.sent_bytes, 4 * estimate.sent_bytes + 4 * estimate.num_params);
  const Prediction shared = predicted({"parallel.context=2"}, &estimate);
  EXPECT_GT(estimate.sent_bytes, 0);
  EXPECT_EQ(shared.sent_bytes, 4 * estimate.sent_bytes + 4 * estimate.num_params);
}

}  // namespace
}  // namespace weft::train
