// What studies use of single runs: halves of the validation data, other test rows, `weft replay`, `weft new`.
#include <nlohmann/json.hpp>

#include "tests/trainers/process.h"
#include "tests/trainers/run_fixture.h"

namespace weft::test {
namespace {

class Replay : public RunFixture {
 protected:
  nlohmann::json json_of(std::vector<std::string> words, int exit_code = 0) {
    words.push_back("--json");
    const ProcessResult result = run_weft(words);
    EXPECT_EQ(result.exit_code, exit_code) << result.err;
    return nlohmann::json::parse(result.out);
  }
};

TEST_F(Replay, StepsAreThoseOfTheRunBitForBit) {
  ASSERT_EQ(run_weft(train("run")).exit_code, 0);  // checkpoints at 35 and 40 and the best one are kept
  const auto json = json_of({"replay", path("run"), "--steps", "40"});
  EXPECT_EQ(json["steps"], 40);
  EXPECT_EQ(json["lines"], 8);
  EXPECT_GE(json["checkpoints"], 2) << "weights and moments are compared";
  EXPECT_TRUE(json["differences"].empty()) << json;
  EXPECT_FALSE(io::file_exists(path("run") + "/replay"));
  const ProcessResult text = run_weft({"replay", path("run"), "--steps", "12"});
  EXPECT_EQ(text.exit_code, 0);
  EXPECT_NE(text.out.find("12 steps replayed: 2 lines of metrics and 0 checkpoints compared, equal bit for bit"),
            std::string::npos)
      << text.out;
}

TEST_F(Replay, SaysWhereARunDiffers) {
  ASSERT_EQ(run_weft(train("run")).exit_code, 0);
  const std::string file = path("run") + "/metrics.jsonl";
  std::string metrics = io::read_file(file);
  const size_t line = metrics.find("{\"step\":15,"), loss = metrics.find("\"train/loss\":", line) + 13;
  metrics.replace(loss, 1, metrics[loss] == '3' ? "4" : "3");
  io::write_file_atomically(file, metrics);
  const auto json = json_of({"replay", path("run"), "--steps", "20"}, 4);
  ASSERT_EQ(json["differences"].size(), 1u) << json;
  EXPECT_EQ(json["differences"][0]["step"], 15);
  EXPECT_EQ(json["differences"][0]["what"], "train/loss");

  // A run that went on from another seed's weights would differ in its checkpoint.
  ASSERT_EQ(run_weft(train("other", {"seed=2"})).exit_code, 0);
  const std::string step = "/checkpoints/step-00000040";
  std::filesystem::remove_all(path("run") + step);
  std::filesystem::copy(path("other") + step, path("run") + step);
  const auto both = json_of({"replay", path("run"), "--steps", "40"}, 4);
  ASSERT_EQ(both["differences"].size(), 2u) << both;
  EXPECT_EQ(both["differences"][1]["step"], 40);
  EXPECT_NE(both["differences"][1]["what"].get<std::string>().find(" in "), std::string::npos) << both;
}

TEST_F(Replay, RefusesARunThatWentOnFromAnotherOne) {
  ASSERT_EQ(run_weft(train("other")).exit_code, 0);
  const std::string from = path("other") + "/checkpoints/step-00000035";
  ASSERT_EQ(run_weft(train("run", {"--resume", from})).exit_code, 0);
  const ProcessResult result = run_weft({"replay", path("run")});
  EXPECT_EQ(result.exit_code, 2) << result.out;
  EXPECT_NE(result.err.find("went on from " + from), std::string::npos) << result.err;
  EXPECT_EQ(run_weft({"replay", path("other"), "--steps", "5"}).exit_code, 0);
}

TEST_F(Replay, RefusesARunOfSeveralRanks) {
  ASSERT_EQ(run_weft(train("run", {"parallel.data=2", "--ranks", "2", "train.tokens=256"})).exit_code, 0);
  const ProcessResult result = run_weft({"replay", path("run")});
  EXPECT_EQ(result.exit_code, 2) << result.out;
  for (const char* part : {"was trained on 2 ranks", "weft parity compares ranks"})
    EXPECT_NE(result.err.find(part), std::string::npos) << part << " in " << result.err;
  EXPECT_FALSE(io::file_exists(path("run") + "/replay"));
}

TEST_F(Replay, RefusesWhatIsNoRun) {
  for (const std::vector<std::string>& words :
       {std::vector<std::string>{"replay", path("nothing")}, {"new", "Loud"}, {"new", "mha"}, {"new", "../loud"}}) {
    const ProcessResult result = run_weft(words);
    EXPECT_EQ(result.exit_code, 2) << words[1] << ": " << result.err;
    EXPECT_NE(result.err.find("error: "), std::string::npos) << result.err;
  }
  // Refused by CMake of their folder, later.
  for (const char* name : {"all", "clean", "edit_cache", "help", "install", "list_install_components", "package",
                           "package_source", "preinstall", "rebuild_cache", "test"}) {
    const ProcessResult result = run_weft({"new", name, "--out", path("taken")});
    EXPECT_EQ(result.exit_code, 2) << name << ": " << result.err;
    EXPECT_NE(result.err.find(std::string("'") + name + "' is the name of a target of CMake"), std::string::npos)
        << result.err;
    EXPECT_FALSE(std::filesystem::exists(path("taken"))) << name;
  }
  std::filesystem::create_directories(path("full"));
  write("full/file", "");
  const ProcessResult full = run_weft({"new", "loud", "--out", path("full")});
  EXPECT_EQ(full.exit_code, 2) << full.err;
  EXPECT_NE(full.err.find("is there already"), std::string::npos) << full.err;
  const ProcessResult good = run_weft({"new", "loud", "--out", path("loud")});
  EXPECT_EQ(good.exit_code, 0) << good.err;
  for (const char* file : {"CMakeLists.txt", "main.cpp", "run.txtpb", "study.txtpb"}) {
    const std::string text = io::read_file(path("loud") + "/" + file);
    EXPECT_NE(text.find("loud"), std::string::npos) << file;
    EXPECT_EQ(text.find("@NAME@"), std::string::npos) << file;
  }
}

TEST_F(Replay, HalvesOfTheValidationDataAreItsTwoParts) {
  ASSERT_EQ(run_weft(train("run", {"train.tokens=640"})).exit_code, 0);
  const auto of = [&](const std::string& override) {
    return json_of({"eval", path("run"), override})["validation"][0];
  };
  const auto all = of("data.val.fraction=0.1"), first = of("data.val.half=1"), second = of("data.val.half=2");
  const int64_t n = all["targets"].get<int64_t>() + 1, half = n / 2;  // the first token is no target
  EXPECT_EQ(first["targets"].get<int64_t>(), half - 1);
  EXPECT_EQ(second["targets"].get<int64_t>(), n - half - 1);
  EXPECT_EQ(of("data.val.tokens=" + std::to_string(half))["loss"], first["loss"]);
  EXPECT_NE(second["loss"], first["loss"]);
}

TEST_F(Replay, TestRowsOfATaskBeginWhereTheConfigSays) {
  ASSERT_EQ(run_weft(train("run", {"data={task{mqar{vocab:64 pairs:4} test_rows:16}}", "train.tokens=640"})).exit_code,
            0);
  const auto loss = [&](const std::string& rows, const std::string& from) {
    return json_of({"eval", path("run"), "data.task.test_rows=" + rows,
                    "data.task.test_from=" + from})["validation"][0]["loss"]
        .get<double>();
  };
  EXPECT_NEAR(loss("32", "0"), (loss("16", "0") + loss("16", "16")) / 2, 1e-9);  // rows have as many targets
  EXPECT_NE(loss("16", "0"), loss("16", "16"));
}

}  // namespace
}  // namespace weft::test
