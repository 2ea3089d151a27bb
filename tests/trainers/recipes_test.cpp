// Every recipe trains.
#include <gtest/gtest.h>

#include <filesystem>
#include <functional>

#include "tests/trainers/process.h"
#include "tests/trainers/run_fixture.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

class Recipes : public test::RunFixture {};

// Recipes that come with the library, ten small steps each; returns how many.
int train_recipes(const std::string& folder, const std::function<std::string(const std::string&)>& path) {
  int count = 0;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().extension() != ".txtpb") continue;
    SCOPED_TRACE(entry.path().string());
    ++count;
    std::vector<std::string> words{"train",
                                   entry.path().string(),
                                   "--run",
                                   path("recipe-" + entry.path().stem().string()),
                                   "data.train.path=" + path("text.txt"),
                                   "train.tokens_per_step=256",
                                   "train.micro_batch=2",
                                   "train.tokens=2560",
                                   "optim.schedule={constant{}}",
                                   "eval.every=0",
                                   "log.sample_tokens=1",
                                   "log.sample_prompt=line",
                                   "train.threads=1",
                                   "model.context=64",
                                   "checkpoint.every=0"};
    if (io::read_file(entry.path().string()).find("\nparallel {") != std::string::npos)
      words.insert(words.end(), {"--ranks", "4"});
    const auto result = test::run_weft(words);
    EXPECT_EQ(result.exit_code, 0) << result.err;
  }
  return count;
}
TEST_F(Recipes, Train) {
  EXPECT_GE(train_recipes(WEFT_RECIPES, [this](const std::string& name) { return path(name); }), 5);
}
TEST_F(Recipes, OfTasksTrain) {
  for (const auto& entry : fs::directory_iterator(WEFT_RECIPES "/tasks")) {
    SCOPED_TRACE(entry.path().string());
    auto result =
        test::run_weft({"train", entry.path().string(), "--run", path(entry.path().stem().string()),
                        "train.tokens_per_step=256", "train.micro_batch=4", "train.tokens=2560",
                        "optim.schedule={constant{}}", "eval.every=0", "train.threads=1", "data.task.test_rows=8"});
    EXPECT_EQ(result.exit_code, 0) << result.err;
  }
}
// Every arm is resolved, matched and weighed.
TEST_F(Recipes, OfStudiesSayWhatTheyNeed) {
  int count = 0;
  for (const auto& entry : fs::directory_iterator(WEFT_RECIPES "/studies")) {
    SCOPED_TRACE(entry.path().string());
    ++count;
    std::vector<std::string> words{"ablate", entry.path().string(), "--dry-run", "--no-times", "--out", path("study")};
    const bool is_of_task = io::read_file(entry.path().string()).find("base: \"../tasks/") != std::string::npos;
    if (!is_of_task) words.insert(words.end(), {"--set", "data.train.path=" + path("text.txt")});
    const auto result = test::run_weft(words);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    EXPECT_NE(result.out.find("cache/token"), std::string::npos) << result.out;
  }
  EXPECT_GE(count, 15);
}
}  // namespace
}  // namespace weft
