// What would give other numbers than their names say is refused, or said: other tokenizers, rows that are shorter than asked, a checkpoint that is not
// the newest, prompts that are cut.
#include <nlohmann/json.hpp>

#include "tests/trainers/process.h"
#include "tests/trainers/run_fixture.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

class RunGuard : public test::RunFixture {
 protected:
  void expect(const test::ProcessResult& result, int code, std::initializer_list<std::string> parts) {
    EXPECT_EQ(result.exit_code, code) << result.out << result.err;
    for (const std::string& part : parts)
      EXPECT_NE(result.err.find(part), std::string::npos) << part << "\n" << result.err;
  }
};

TEST_F(RunGuard, DataOfAnotherTokenizerIsRefused) {
  ASSERT_EQ(test::run_weft(train("a", {"model.vocab=512"})).exit_code, 0);
  const std::string text = "val{path:\"" + path("text.txt") + "\"} train{path:\"" + path("text.txt") + "\"}";
  for (const char* command : {"eval", "sample", "analyse"}) {
    SCOPED_TRACE(command);
    for (const char* tokenizer : {"", "tokenizer{bytes{}} "})
      expect(test::run_weft({command, path("a"), "data={" + std::string(tokenizer) + text + "}"}), 2,
             {"a trained model keeps its tokenizer", "characters", "bytes", "data.val.path=FILE"});
    expect(test::run_weft({command, path("a"), "data={tokenizer{characters{}} " + text + "}"}), 0, {});
  }
  ASSERT_EQ(test::run_weft(train("b", {"model.vocab=512", "data.tokenizer={bytes{}}"})).exit_code, 0);
  expect(test::run_weft({"eval", path("b"), "data={tokenizer{characters{}} " + text + "}"}), 2,
         {"keeps its tokenizer"});
  EXPECT_FALSE(io::file_exists(path("b/data/alphabet.txt")));
  ASSERT_EQ(test::run_weft(train("t", {"model.vocab=512", "data={task{mqar{vocab:64,pairs:4}}}", "log.samples_every=0",
                                       "train.tokens=640"}))
                .exit_code,
            0);
  expect(test::run_weft({"eval", path("t"), "data={" + text + "}"}), 2, {"is ids of a task", "data.task={..}"});
}

// Rows of an embedding and a teacher's ids would stand for other characters, although the shapes are the same.
TEST_F(RunGuard, ARunOfAnotherTokenizerIsNoStart) {
  std::string first, second;
  for (int i = 0; i < 4000; ++i) {
    first += static_cast<char>('a' + i * i % 7);
    second += static_cast<char>('s' + i * i % 7);
  }
  write("first.txt", first), write("second.txt", second);
  auto of = [&](const std::string& text) { return "data.train=[{path:\"" + path(text) + "\"}]"; };
  ASSERT_EQ(test::run_weft(train("a", {of("first.txt"), "log.samples_every=0"})).exit_code, 0);
  for (const char* distill : {"", " distill{}"}) {
    const std::string start = "start={from:\"" + path("a") + "\"" + distill + "}";
    expect(test::run_weft(train("same" + std::to_string(distill[0]), {of("first.txt"), start, "log.samples_every=0"})),
           0, {"start: 11 of 11 tensors"});
    expect(
        test::run_weft(train("other" + std::to_string(distill[0]), {of("second.txt"), start, "log.samples_every=0"})),
        2, {"start.from: the run of", "another tokenizer", "characters"});
  }
}

TEST_F(RunGuard, RowsLongerThanTheTextAreRefused) {
  ASSERT_EQ(test::run_weft(train("a")).exit_code, 0);
  write("v.txt", std::string(20, '1') + std::string(44, '2'));
  const std::string text = "data.val.path=" + path("v.txt");
  const auto longest = test::run_weft({"eval", path("a"), text, "--lengths", "16,63", "--json"});
  ASSERT_EQ(longest.exit_code, 0) << longest.err;
  EXPECT_EQ(nlohmann::json::parse(longest.out)["validation"][1]["targets"], 63);
  const auto beyond = test::run_weft({"eval", path("a"), text, "--lengths", "16,64"});
  expect(beyond, 2, {"--lengths 64: the validation text has 64 tokens", "lengths up to 63"});
  EXPECT_EQ(beyond.out, "");
}

TEST_F(RunGuard, ADamagedCheckpointIsInTheResult) {
  ASSERT_EQ(test::run_weft(train("a", {"checkpoint.keep_last=8"})).exit_code, 0);
  const std::string file = path("a/checkpoints/step-00000040/model.safetensors");
  fs::resize_file(file, fs::file_size(file) - 1);
  for (const char* command : {"eval", "sample", "analyse"}) {
    const auto result = test::run_weft({command, path("a"), "--quiet", "--json"});
    EXPECT_EQ(result.exit_code, 0) << result.err;
    const nlohmann::json json = nlohmann::json::parse(result.out);
    EXPECT_EQ(json["step"], 35) << command;
    EXPECT_NE(json.value("warning", "").find("step-00000040"), std::string::npos) << command << result.out;
  }
}

TEST_F(RunGuard, APromptThatIsCutIsSaid) {
  ASSERT_EQ(test::run_weft(train("a")).exit_code, 0);
  ASSERT_EQ(test::run_weft(train("state", {"model.mixer=[{gla{heads:2}}]"})).exit_code, 0);
  const std::string prompt = "line 11 of a text that repeats itself";  // 37 characters, the context is 32
  auto sample = [&](const std::string& run, const std::string& text) {
    return test::run_weft({"sample", path(run), "--prompt", text, "--tokens", "3", "--json"});
  };
  const std::string cut = "the prompt has 37 tokens, and the model reads the last 32";
  EXPECT_NE(sample("a", prompt).out.find(cut), std::string::npos);
  EXPECT_NE(sample("a", prompt).err.find(cut), std::string::npos);
  EXPECT_EQ(sample("a", prompt.substr(5)).out.find("warning"), std::string::npos);
  EXPECT_EQ(sample("state", prompt).out.find("warning"), std::string::npos);
}

TEST_F(RunGuard, OptionsWithoutEffectAreRefused) {
  ASSERT_EQ(test::run_weft(train("a", {"train.tokens=640"})).exit_code, 0);
  expect(test::run_weft({"convert", path("a"), "--to", "gates", "--slots", "3", "--out", path("b")}), 2,
         {"--slots: --to gates makes no slots"});
  EXPECT_FALSE(io::is_folder(path("b")));
  expect(test::run_weft({"claims", std::string(WEFT_RECIPES) + "/studies/claim_gates.txtpb", "--runs", path("none")}),
         2, {"none is no folder"});
}

// Each task is known to fit before one is computed.
TEST_F(RunGuard, TasksOfMoreIdsThanTheModelHasAreRefusedFirst) {
  ASSERT_EQ(test::run_weft(train("a", {"train.tokens=640"})).exit_code, 0);
  const auto result = test::run_weft({"eval", path("a"), "--tasks", "mqar,needle", "--lengths", "64", "--rows", "4"});
  expect(result, 2, {"needle", "The model has "});
  EXPECT_EQ(result.out, "");
}

}  // namespace
}  // namespace weft
