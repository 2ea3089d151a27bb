// The frame of benchmarks: what several runs become, what is printed around the rows, and where a step's time goes.
#include "tools/bench/bench.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>

#include "tests/support/errors.h"
#include "tools/bench/step_shares.h"
#include "weft/core/parallel.h"

namespace weft::bench {
namespace {

Row row_with(const char* name, double ratio) {
  Row row{.name = name, .shape = "8x8", .dtype = "f32", .value = 10 * ratio, .unit = "x", .limit = 10, .ratio = ratio};
  row.extra = {{"goal", "0.5"}};
  return row;
}

template <class Print>
std::string printed(Print print) {
  char* text = nullptr;
  size_t size = 0;
  std::FILE* to = open_memstream(&text, &size);
  print(to);
  std::fclose(to);
  std::string all(text, size);
  std::free(text);
  return all;
}

std::string column(const Row& row, const std::string& heading) {
  for (const auto& [name, text] : row.extra)
    if (name == heading) return text;
  return "none";
}

TEST(Bench, OfSeveralRunsEachRowIsTheOneOfTheMiddleRatio) {
  std::vector<std::vector<Row>> runs = {{row_with("a", 0.7), row_with("b", 0.2)},
                                        {row_with("a", 0.5), row_with("b", 0.9)},
                                        {row_with("a", 0.6), row_with("b", 0.3)}};
  std::vector<Row> rows = middle_rows(runs);
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0].ratio, 0.6);
  EXPECT_EQ(rows[0].value, 6) << "value, limit and ratio are of one run";
  EXPECT_EQ(column(rows[0], "lowest"), "0.500");
  EXPECT_EQ(column(rows[0], "highest"), "0.700");
  EXPECT_EQ(column(rows[0], "goal"), "0.5");
  EXPECT_EQ(rows[1].ratio, 0.3);
  runs.pop_back();
  EXPECT_EQ(middle_rows(runs)[0].ratio, 0.5) << "the lower one of two";
  // Nothing was measured of a row that says why.
  const Row none{.name = "c", .shape = "", .dtype = "", .unit = "", .extra = {{"refused", "why"}}};
  const std::vector<std::vector<Row>> refused(2, std::vector<Row>(1, none));
  EXPECT_EQ(column(middle_rows(refused)[0], "lowest"), "none");
  runs[1].pop_back();
  EXPECT_EQ(test::error_of([&] { middle_rows(runs); }, {"another run has no row a 8x8 f32"}), "");
}

TEST(Bench, FactsStandAboveTheTableAndInTheJson) {
  const std::vector<Row> rows = {row_with("a", 0.7)};
  const Facts facts = {{"cpu", "a \"fast\" one"}, {"load", "0.25"}};
  EXPECT_EQ(printed([&](std::FILE* to) { print_table(rows, facts, to); }),
            "cpu a \"fast\" one; load 0.25\n\n"
            "name  shape  dtype  threads  value  unit  limit  ratio  goal\n"
            "a     8x8    f32          1  7.000  x      10.0  0.700  0.5\n");
  EXPECT_EQ(
      printed([&](std::FILE* to) { print_json(rows, facts, to); }),
      "{\"facts\": {\"cpu\": \"a \\\"fast\\\" one\", \"load\": \"0.25\"},\n\"rows\": [\n"
      "  {\"name\": \"a\", \"shape\": \"8x8\", \"dtype\": \"f32\", \"threads\": 1, \"value\": 7, \"unit\": \"x\", "
      "\"limit\": 10, \"ratio\": 0.7, \"goal\": \"0.5\"}\n]}\n");
}

TEST(Bench, SharesAreThoseOfTheWholeStep) {
  const std::vector<SelfTime> times = {{"forward matmul", 30, 1},    {"backward matmul", 20, 1},
                                       {"forward attention", 10, 1}, {"backward attention", 5, 1},
                                       {"update matmul", 4, 1},      {"update", 6, 1},
                                       {"update layers.*", 2, 1},    {"forward layer_norm", 3, 1}};
  const StepShares shares = step_shares(times, 200);
  EXPECT_EQ(shares.products, 25);
  EXPECT_EQ(shares.attention, 7.5);
  EXPECT_EQ(shares.update_products, 2);
  EXPECT_EQ(shares.update, 4);
  EXPECT_EQ(shares.other, 65.5) << "what no span covers is a part of it";
}

// The names of the spans that step_shares() looks for are those that a training has.
TEST(Bench, SpansOfAStepHaveTheNamesThatSharesAreMadeOf) {
  const int threads = num_threads();
  set_num_threads(1);
  constexpr StepShape kTiny = {"L1 d32 h2 T64 V64 B2", 1, 32, 2, 64, 64, 2};
  for (bool has_muon : {false, true}) {
    TrainingStep step(has_muon ? quickstart_options(kTiny) : gpt2_options(kTiny), kTiny.batch, kF32,
                      has_muon ? quickstart_groups() : std::vector<ParamGroup>());
    step.run();
    const StepShares shares = measured_shares(step, 3);
    EXPECT_GT(shares.products, 0);
    EXPECT_GT(shares.attention, 0);
    EXPECT_GT(shares.update, 0);
    EXPECT_EQ(shares.update_products > 0, has_muon);
    EXPECT_GT(shares.other, shares.update);
    EXPECT_NEAR(shares.products + shares.attention + shares.update_products + shares.other, 100, 1e-9);
  }
  set_num_threads(threads);
}

TEST(Bench, RowsOfTrainingStepsThatThereAreNot) {
  EXPECT_EQ(test::error_of([] { run_train({.rows = "L5"}); },
                           {"no row has each word of 'L5'", "step L6 d384 h6 T512 V8192 B4 f32", "quickstart's step"}),
            "");
  EXPECT_EQ(test::error_of([] { check_train({.rows = "L4 f64"}); }, {"'L4 f64'"}), "");
  EXPECT_EQ(test::error_of([] { run_train({.rows = "L4", .mixer = "all"}); }, {"rows of mixers have no words"}), "");
  check_train({.rows = "L4 bf16"});
  check_train({.mixer = "gqa"});
}

}  // namespace
}  // namespace weft::bench
