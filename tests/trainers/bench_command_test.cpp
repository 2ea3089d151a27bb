// `weft bench` as a process: what it refuses before it measures, and what it says of the machine beside the rows.
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/trainers/config_text.h"
#include "tests/trainers/process.h"
#include "trainers/command/command.h"

namespace weft::cli {
namespace {

using config::test::expect_parts;

TEST(BenchCommand, RefusesRowsAndOptionsThatItDoesNotHave) {
  const std::string lengths = ::testing::TempDir() + "weft_bench_lengths.csv";
  std::ofstream(lengths) << "1,40,1\n";
  struct Row {
    std::vector<std::string> arguments, parts;
  };
  const Row rows[] = {
      {{"train", "--rows", "L5"}, {"no row has each word of 'L5'", "step L6 d384 h6 T512 V8192 B4 f32"}},
      {{"train", "--rows", "L5", "--quick", "--json"}, {"no row has each word of 'L5'"}},
      {{"train", "--rows", "L4", "--mixer", "all"}, {"rows of mixers have no words, and 'L4' is asked for"}},
      {{"gemm", "--rows", "L4"}, {"weft bench gemm measures all its rows"}},
      {{"gemm", "--runs", "0"}, {"--runs"}},
      {{"ring", "--masks", "cauusal"}, {"--masks cauusal: there is none", "use all, full, causal"}},
      {{"ring", "--ranks", "2,0"}, {"--ranks 0"}},
      {{"ring", "--plan", "--masks", "causal"}, {"--plan has masks, layouts, documents and lengths of its own"}},
      {{"ring", "--plan", "--runs", "3"}, {"--runs 3: --plan measures nothing"}},
      {{"ring", "--masks", "causal", "--documents", lengths},
       {"--documents: none of the masks has documents", "causal_document"}},
      {{"ring", "--device", "cuda"}, {"--device cuda: not for weft bench ring: its ranks are threads of the CPU"}}};
  for (Row row : rows) {
    row.arguments.insert(row.arguments.begin(), "bench");
    const auto run = test::run_weft(row.arguments);
    EXPECT_EQ(run.exit_code, kUsageError) << row.arguments[1] << " " << row.arguments[2] << run.err;
    EXPECT_EQ(run.out, "") << row.arguments[1] << " " << row.arguments[2];
    expect_parts(run.err, row.parts);
  }
}

TEST(BenchCommand, SaysWhereAndWhenItMeasured) {
  const auto run = test::run_weft({"bench", "call", "--quick", "--runs", "2", "--json"});
  ASSERT_EQ(run.exit_code, kSuccess) << run.err;
  const auto json = nlohmann::json::parse(run.out);
  const auto& facts = json["facts"];
  for (const char* name :
       {"cpu", "kernels", "cores", "threads", "oneDNN", "compiler", "weft", "commit", "date", "load"})
    EXPECT_TRUE(facts.contains(name)) << name << " is not in " << facts;
  EXPECT_EQ(facts["command"], "weft bench call --quick --runs 2");
  ASSERT_GT(json["rows"].size(), 5u);
  for (const auto& row : json["rows"]) {
    const double lowest = std::stod(row["lowest"].get<std::string>()),
                 highest = std::stod(row["highest"].get<std::string>());
    EXPECT_GT(lowest, 0);
    EXPECT_LE(lowest, highest);
    EXPECT_LE(row["ratio"].get<double>(), 1.01 * highest);
  }
  const auto plan = test::run_weft({"bench", "ring", "--plan"});
  EXPECT_EQ(plan.exit_code, kSuccess) << plan.err;
  expect_parts(plan.out.substr(0, plan.out.find('\n')),
               {"cpu ", "; kernels ", "; oneDNN ", "; command weft bench ring --plan"});
}

}  // namespace
}  // namespace weft::cli
