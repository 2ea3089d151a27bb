// tools/examples/own_parts.cpp, a program with a part of each kind: under the suite and in a config.
#include <regex>

#include "tests/trainers/process.h"
#include "tests/trainers/run_fixture.h"

namespace weft::test {
namespace {

const std::vector<std::string> kParts = {"norm.cube_root", "ffn.relu2", "residual.damped", "heads.talking",
                                         "attention.dilated"};

TEST(OwnParts, PassTheSuite) {
  for (const std::string& part : kParts) {
    ProcessResult check = run_weft({"check", "--mixer", part});
    EXPECT_EQ(check.exit_code, 0) << check.out << check.err;
    EXPECT_NE(check.out.find("1 variants, 14 checks"), std::string::npos) << check.out;
    EXPECT_NE(check.out.find(" 0 failed"), std::string::npos) << check.out;
  }
}

TEST(OwnParts, HaveTheGradientsOfDifferences) {
  for (const std::string& part : kParts) {
    ProcessResult check = run_weft({"gradcheck", "--mixer", part, "--shapes", "5x16,9x8"});
    EXPECT_EQ(check.exit_code, 0) << check.out << check.err;
    EXPECT_NE(check.out.find("passed"), std::string::npos) << check.out;
  }
}

class OwnPartsRun : public RunFixture {
 protected:
  // A tiny model of these parts alone.
  void SetUp() override {
    RunFixture::SetUp();
    write("parts.txtpb", R"(
model {
  dim: 16 layers: 2 context: 32
  norm { custom { type: "cube_root" } }
  mixer { softmax { heads: 2 custom_heads { type: "talking" }
                    custom_attention { type: "dilated" number { key: "cap" value: 4 } } } }
  ffn { custom { type: "relu2" number { key: "times" value: 3 } } }
  residual { custom { type: "damped" } }
}
data { tokenizer { characters {} } train { path: "text.txt" } val { fraction: 0.1 } }
train { tokens: 1280 tokens_per_step: 128 micro_batch: 2 threads: 1 }
eval { every: 0 } log { sample_tokens: 10 }
)");
  }
};

TEST_F(OwnPartsRun, TrainsResumesAndSamplesFromAConfig) {
  ProcessResult run = run_weft({"train", path("parts.txtpb"), "--run", path("run")});
  ASSERT_EQ(run.exit_code, 0) << run.err;
  ProcessResult sampled = run_weft({"sample", path("run"), "--prompt", "line", "--tokens", "5"});
  EXPECT_EQ(sampled.exit_code, 0) << sampled.err;
  ProcessResult evaluated = run_weft({"eval", path("run")});
  EXPECT_EQ(evaluated.exit_code, 0) << evaluated.err;
}

TEST_F(OwnPartsRun, TakesTheNumbersOfTheConfigAndKeepsThem) {
  auto weights_of = [&](const std::string& config, const std::string& run, std::vector<std::string> more = {}) {
    std::vector<std::string> words{"train", path(config), "--run", path(run)};
    words.insert(words.end(), more.begin(), more.end());
    ProcessResult result = run_weft(words);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return io::read_file(path(run) + "/checkpoints/step-00000010/model.safetensors");
  };
  const std::string first = weights_of("parts.txtpb", "first");
  const std::regex up(R"("layers\.0\.ffn\.up\.weight":\{[^}]*"shape":\[48,16\])");
  EXPECT_TRUE(std::regex_search(first.substr(0, first.find('\0', 8)), up)) << "times: 3 did not arrive";
  EXPECT_EQ(weights_of("first/config.txtpb", "again"), first);
  EXPECT_NE(weights_of("parts.txtpb", "other", {"model.mixer[0].softmax.custom_attention.number[0].value=0.5"}), first);
}

TEST(OwnParts, StandInTheTableWithTheirNumbers) {
  ProcessResult table = run_weft({"check", "--table", "--mixer", "ffn.relu2"});
  EXPECT_EQ(table.exit_code, 0) << table.err;
  EXPECT_NE(table.out.find(R"(ffn { custom { type: "relu2" number { key: "times" value: 2 } } })"), std::string::npos)
      << table.out;
}

TEST_F(OwnPartsRun, NamesWhatIsNotRegistered) {
  for (const char* place : {"model.norm.custom", "model.ffn.custom", "model.residual.custom",
                            "model.mixer[0].softmax.custom_heads", "model.mixer[0].softmax.custom_attention"}) {
    ProcessResult run =
        run_weft({"train", path("parts.txtpb"), std::string(place) + ".type=missing", "--run", path("run")});
    EXPECT_EQ(run.exit_code, 2) << run.err;
    EXPECT_NE(run.err.find(std::string(place) + " names 'missing', which is not registered."), std::string::npos)
        << run.err;
    EXPECT_NE(run.err.find("This program knows"), std::string::npos) << run.err;
  }
}

TEST_F(OwnPartsRun, RefusesOptionsThatTheScoreTakesThePlaceOf) {
  for (const char* option : {"soft_cap=5", "position=alibi", "weights={kind:relu}", "affine={}"}) {
    ProcessResult run =
        run_weft({"train", path("parts.txtpb"), std::string("model.mixer[0].softmax.") + option, "--run", path("run")});
    EXPECT_NE(run.exit_code, 0) << option;
    EXPECT_NE(run.err.find("own attention beside a soft cap"), std::string::npos) << run.err;
  }
}

}  // namespace
}  // namespace weft::test
