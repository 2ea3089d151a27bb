// weft convert, import and export as a user calls them: trainings that begin as converted runs, and the recipe that compares them.
#include <cmath>

#include "tests/trainers/process.h"
#include "tests/trainers/run_fixture.h"
#include "weft/io/metrics.h"

namespace weft {
namespace {

class ConvertRun : public test::RunFixture {
 protected:
  void SetUp() override {
    RunFixture::SetUp();
    before_ = std::filesystem::current_path();
    std::filesystem::current_path(folder_);
    write("four.txtpb", R"(
model { dim: 16 layers: 2 context: 32 mixer { softmax { heads: 4 } } ffn { swiglu { hidden: 32 } } }
data { tokenizer { characters {} } train { path: "text.txt" } val { fraction: 0.1 } }
optim { group { match: "*" adamw { lr: 3e-3 } } }
train { tokens: 5120 tokens_per_step: 128 micro_batch: 2 threads: 1 }
log { every: 1 sample_tokens: 1 }
)");
  }
  void TearDown() override {
    std::filesystem::current_path(before_);
    RunFixture::TearDown();
  }

  static test::ProcessResult weft(const std::vector<std::string>& words) {
    const auto result = test::run_weft(words);
    EXPECT_EQ(result.exit_code, 0) << result.out << result.err;
    return result;
  }
  static double first_loss(const std::string& run) {
    for (const auto& record : io::read_metrics(run + "/metrics.jsonl"))
      if (auto loss = record.value("train/loss")) return *loss;
    return NAN;
  }

  std::filesystem::path before_;
};

TEST_F(ConvertRun, TrainingBeginsAtThePretrainedLoss) {
  weft({"train", "four.txtpb", "--run", "base"});
  auto trained_on = [&](const std::string& config, const std::string& from, const std::string& run) {
    weft({"train", config, "--run", run, "start={from:\"" + from + "\"}", "train.tokens=1280",
          "data.weights_only=false", "data.train=[{path:\"text.txt\"}]", "data.val={fraction:0.1}"});
    return first_loss(run);
  };
  const double plain = trained_on("four.txtpb", "base", "plain");
  EXPECT_LT(plain, 3) << "it has learned something";
  for (const std::string kind : {"gates", "delta_residual"}) {
    const auto result = weft({"convert", "base", "--to", kind, "--out", kind});
    EXPECT_NE(result.out.find("0 without a place"), std::string::npos) << result.out;
    EXPECT_NEAR(trained_on(kind + "/config.txtpb", kind, kind + "-on"), plain, 1e-3) << kind;
  }
  weft({"convert", "base@40", "--to", "moh", "--out", "moh", "model.mixer[0].softmax.head_mixture.active=2",
        "model.mixer[0].softmax.head_mixture.balance_loss=0"});
  EXPECT_NEAR(trained_on("moh/config.txtpb", "moh", "moh-on"), plain, 1e-3);
  weft({"sample", "gates", "--prompt", "line", "--tokens", "5"});
  const auto odd = test::run_weft({"convert", "base", "--to", "gate", "--out", "odd"});
  EXPECT_EQ(odd.exit_code, 2);
  EXPECT_NE(odd.err.find("--to"), std::string::npos) << odd.err;
  EXPECT_NE(odd.err.find("gates"), std::string::npos) << odd.err;
}

TEST_F(ConvertRun, TheRecipeComparesConversions) {
  const std::vector<std::string> sizes{"model.dim=16",
                                       "model.layers=2",
                                       "model.context=32",
                                       "model.ffn.swiglu.hidden=32",
                                       "train.micro_batch=2",
                                       "train.tokens_per_step=128",
                                       "eval.every=0",
                                       "checkpoint.every=0",
                                       "log.sample_tokens=1",
                                       "optim.schedule={constant{}}",
                                       "data.train.path=" + path("text.txt")};
  std::vector<std::string> pretrain{
      "train", WEFT_RECIPES "/quickstart.txtpb", "--run", "runs/pretrained", "train.tokens=2560", "train.threads=1"};
  pretrain.insert(pretrain.end(), sizes.begin(), sizes.end());
  weft(pretrain);
  weft({"convert", "runs/pretrained", "--to", "gates", "--out", "runs/pretrained-gates"});
  const auto slots = weft({"convert", "runs/pretrained", "--to", "gated_slots", "--out", "runs/pretrained-slots"});
  EXPECT_NE(slots.out.find("lost, which no tensor held: layers.0.mixer: rotation of queries and keys"),
            std::string::npos)
      << slots.out;
  // Its runs are those of runs/ in the folder that holds trainers/, whatever the working directory is.
  std::filesystem::create_directories("trainers");
  std::filesystem::copy(WEFT_RECIPES, "trainers/recipes", std::filesystem::copy_options::recursive);
  std::filesystem::create_directory("elsewhere");
  std::filesystem::current_path("elsewhere");
  std::vector<std::string> study{"ablate", "../trainers/recipes/convert/study.txtpb", "--out", "study", "--jobs", "1"};
  for (const std::string& size : sizes) study.insert(study.end(), {"--set", size});
  study.insert(study.end(), {"--set", "train.tokens=640"});
  const auto result = weft(study);
  for (const char* arm : {"plain", "gates", "moh", "delta_residual", "linear", "gated_slots"})
    EXPECT_NE(result.out.find(arm), std::string::npos) << result.out;
}

TEST_F(ConvertRun, AnExportOfAdaptersIsMergedAndInShards) {
  weft({"train", "four.txtpb", "--run", "base"});
  weft({"train", "four.txtpb", "--run", "adapted", "start={from:\"base\",frozen:\"*\",trained:\"*.adapter_*\"}",
        "model.adapter=[{match:\"layers.*\",rank:2}]", "train.tokens=1280"});
  const auto refused = test::run_weft({"export", "adapted", "--out", "model"});
  EXPECT_EQ(refused.exit_code, 2);
  EXPECT_NE(refused.err.find("--merge-adapters"), std::string::npos) << refused.err;
  EXPECT_FALSE(io::file_exists("model"));
  const auto done = weft({"export", "adapted", "--out", "model", "--merge-adapters", "--max-shard-size", "4k"});
  EXPECT_NE(done.out.find("14 adapters merged"), std::string::npos) << done.out;
  EXPECT_TRUE(io::file_exists("model/model.safetensors.index.json"));
  weft({"import", "model", "--out", "again"});
  weft({"convert", "base", "--to", "gates", "--out", "gates"});
  // What is there already is refused alike.
  for (const std::vector<std::string>& words : {std::vector<std::string>{"import", "model", "--out", "again"},
                                                {"convert", "base", "--to", "gates", "--out", "gates"},
                                                {"export", "base", "--out", "model"},
                                                {"new", "loud", "--out", "model"}}) {
    const auto there = test::run_weft(words);
    EXPECT_EQ(there.exit_code, 2) << words[0] << ": " << there.err;
    EXPECT_NE(there.err.find("already"), std::string::npos) << there.err;
  }
}

TEST_F(ConvertRun, NamesTheCommandsOfOtherConversions) {
  for (const auto& [words, part] : std::vector<std::pair<std::vector<std::string>, std::string>>{
           {{"convert", "hf-import", "model"}, "Write weft import FOLDER --out RUN"},
           {{"convert", "hf-export", "run", "--out", "model"}, "Write weft export RUN --out FOLDER"},
           {{"convert", "run", "--out", "new"}, "--to is missing"},
           {{"convert", "run", "--to", "gates"}, "--out is missing"}}) {
    const auto refused = test::run_weft(words);
    EXPECT_EQ(refused.exit_code, 2) << refused.err;
    EXPECT_NE(refused.err.find(part), std::string::npos) << part << " in " << refused.err;
  }
}

}  // namespace
}  // namespace weft
