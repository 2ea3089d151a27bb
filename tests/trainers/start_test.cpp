// Trainings that begin as another run: layers that are replaced and healed, parts that are added to a frozen model.
#include <cmath>
#include <sstream>

#include "tests/trainers/process.h"
#include "tests/trainers/run_fixture.h"
#include "weft/core/error.h"
#include "weft/io/safetensors.h"

namespace weft {
namespace {

class StartRun : public test::RunFixture {
 protected:
  void SetUp() override {
    RunFixture::SetUp();
    write("three.txtpb", R"(
model { dim: 16 layers: 3 context: 32 mixer { softmax { heads: 2 } } ffn { swiglu { hidden: 32 } } }
data { tokenizer { characters {} } train { path: "text.txt" } val { fraction: 0.1 } }
optim { group { match: "*" adamw { lr: 3e-3 } } }
train { tokens: 2560 tokens_per_step: 128 micro_batch: 2 threads: 1 }
log { sample_tokens: 1 } checkpoint { every: 10 keep_last: 4 }
)");
    const auto result = test::run_weft({"train", path("three.txtpb"), "--run", path("base")});
    ASSERT_EQ(result.exit_code, 0) << result.err;
  }
  io::SafetensorsFile model(const std::string& run, const char* step) const {
    return io::SafetensorsFile::open(path(run) + "/checkpoints/step-000000" + step + "/model.safetensors");
  }
};

bool is_same(const io::SafetensorsFile& a, const io::SafetensorsFile& b, const std::string& name) {
  return a.load(name).to_vector<float>() == b.load(name).to_vector<float>();
}

// Of three layers the one that matters least becomes the identity, the next linear; the loss against the teacher falls.
TEST_F(StartRun, BoostReplacesTheLayersThatMatterLeastAndHealsThem) {
  const auto boosted =
      test::run_weft({"boost", path("base"), "--out", path("boosted.txtpb"), "--window", "8", "--heal", "1280"});
  ASSERT_EQ(boosted.exit_code, 0) << boosted.err;
  for (const char* word : {"softmax", "linear window", "identity", "loss as identity"})
    EXPECT_NE(boosted.out.find(word), std::string::npos) << boosted.out;
  const std::string config = io::read_file(path("boosted.txtpb"));
  for (const char* word : {"kind: linear", "kind: identity", "window: 8", "distill", "tokens: 1280", "base@20"})
    EXPECT_NE(config.find(word), std::string::npos) << config;
  const auto healed = test::run_weft({"train", path("boosted.txtpb"), "--run", path("healed")});
  ASSERT_EQ(healed.exit_code, 0) << healed.err;
  // Of 3 layers with 9 tensors each (two norms, four projections, three of the network), embedding and norm, all fit; the identity has no
  // place for queries and keys.
  for (const char* word : {"start: 27 of 27 tensors", "without a place are", "distance from that model", "layers: "})
    EXPECT_NE(healed.err.find(word), std::string::npos) << healed.err;
  const auto again = test::run_weft({"boost", path("healed"), "--out", path("again.txtpb")});
  EXPECT_NE(again.exit_code, 0);
  EXPECT_NE(again.err.find("1 layers of softmax attention"), std::string::npos) << again.err;
}

// Attention to the token itself is the identity, which changes no loss; without it the loss changes.
TEST_F(StartRun, BoostScansByTheIdentityOrByRemoval) {
  const auto trained =
      test::run_weft({"train", path("three.txtpb"), "model.mixer=[{softmax{heads:2,window:1}}]", "--run", path("own")});
  ASSERT_EQ(trained.exit_code, 0) << trained.err;
  auto growths = [&](const char* scan) {
    const auto result = test::run_weft({"boost", path("own"), "--scan", scan, "--out", path("own.txtpb")});
    EXPECT_EQ(result.exit_code, 0) << result.err;
    std::vector<double> all;
    std::istringstream lines(result.out);
    std::string line;
    std::getline(lines, line);
    for (int layer = 0; layer < 3; ++layer) {
      int number = -1;
      double growth = NAN;
      lines >> number >> growth;
      EXPECT_EQ(number, layer) << result.out;
      all.push_back(growth);
      std::getline(lines, line);
    }
    return all;
  };
  for (double growth : growths("identity")) EXPECT_NEAR(growth, 0, 1e-4);
  double most = 0;
  for (double growth : growths("removal")) most = std::max(most, std::abs(growth));
  EXPECT_GT(most, 1e-4);
  EXPECT_NE(test::run_weft({"boost", path("own"), "--scan", "nothing", "--out", path("own.txtpb")}).exit_code, 0);
}

// What a replacement does not have of a layer is in the list. A layer's position goes over to linear attention, but alibi, which is refused.
TEST_F(StartRun, BoostSaysWhichOptionsOfALayerAreLeftOut) {
  auto boost = [&](const std::string& softmax, const std::string& run) {
    const auto result =
        test::run_weft({"train", path("three.txtpb"), "model.mixer=[{softmax{heads:2," + softmax + "}}]",
                        "train.tokens=128", "--run", path(run)});
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return test::run_weft({"boost", path(run), "--out", path(run + ".txtpb"), "--window", "8"});
  };
  const auto listed = boost("qk_norm:true,sink{kind:logit}", "options");
  EXPECT_EQ(listed.exit_code, 0) << listed.err;
  EXPECT_NE(listed.out.find("linear window, without qk_norm, sink\n"), std::string::npos) << listed.out;
  EXPECT_NE(listed.out.find("identity, without qk_norm, sink\n"), std::string::npos) << listed.out;
  EXPECT_NE(listed.out.find("softmax\n"), std::string::npos) << listed.out;
  EXPECT_EQ(io::read_file(path("options.txtpb")).find("position: none"), std::string::npos);
  const auto still = boost("position:none", "still");
  EXPECT_EQ(still.exit_code, 0) << still.err;
  EXPECT_NE(still.out.find("linear window\n"), std::string::npos) << still.out;
  const std::string config = io::read_file(path("still.txtpb"));
  const size_t linear = config.find("kind: linear");
  ASSERT_NE(linear, std::string::npos) << config;
  EXPECT_LT(config.find("position: none", linear), config.find("}", linear)) << config;
  const auto windowed = boost("window:5", "windowed");  // --window is 8
  EXPECT_EQ(windowed.exit_code, 0) << windowed.err;
  EXPECT_NE(io::read_file(path("windowed.txtpb")).find("kind: linear"), std::string::npos);
  EXPECT_EQ(io::read_file(path("windowed.txtpb")).find("window: 8"), std::string::npos);
  const auto refused = boost("position:alibi", "sloped");
  EXPECT_NE(refused.exit_code, 0);
  for (const char* words : {"boost: layer ", "which has no alibi", "position: model or none"})
    EXPECT_NE(refused.err.find(words), std::string::npos) << refused.err;
}

// A run without a step of its own is its teacher: the distance is 0.
TEST_F(StartRun, AModelIsNoDistanceFromItself) {
  const auto result = test::run_weft({"train", path("three.txtpb"), "start={from:\"" + path("base") + "\",distill{}}",
                                      "log.every=1", "train.tokens=128", "--run", path("same")});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const std::string metrics = io::read_file(path("same/metrics.jsonl")), name = "\"train/loss\":";
  const size_t at = metrics.find(name);
  ASSERT_NE(at, std::string::npos) << metrics;
  EXPECT_NEAR(std::stod(metrics.substr(at + name.size())), 0, 1e-6) << metrics;
}

TEST_F(StartRun, AFrozenModelTrainsItsRoutersAlone) {
  const std::string start = "start={from:\"" + path("base") + "@10\",frozen:\"*\",trained:\"*.router.*\"}";
  const auto result =
      test::run_weft({"train", path("three.txtpb"), "model.mixer=[{flux{heads:2,window:8,prompt:4,hidden:8}}]", start,
                      "--run", path("routed")});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  for (const char* word : {"start: 29 of 41 tensors", "new are", "router.up.weight", "parameters are frozen"})
    EXPECT_NE(result.err.find(word), std::string::npos) << result.err;
  const io::SafetensorsFile before = model("base", "10"), after = model("routed", "20"), early = model("routed", "10");
  for (const io::TensorEntry& entry : before.tensors()) EXPECT_TRUE(is_same(before, after, entry.name)) << entry.name;
  EXPECT_FALSE(is_same(early, after, "layers.0.mixer.router.up.weight"));
}

// Also biases and gains keep their values.
TEST_F(StartRun, AFrozenModelTrainsItsAdaptersAlone) {
  const auto train = [&](const std::string& run, const std::vector<std::string>& more) {
    std::vector<std::string> words{"train", path("three.txtpb"), "model.mixer=[{softmax{heads:2,bias:true}}]", "--run",
                                   path(run)};
    words.insert(words.end(), more.begin(), more.end());
    return test::run_weft(words);
  };
  ASSERT_EQ(train("biased", {}).exit_code, 0);
  const auto result =
      train("adapted", {"model.adapter+={match:\"layers.*.mixer.q\" rank:2 alpha:4}",
                        "start={from:\"" + path("biased") + "\",frozen:\"*\",trained:\"*.adapter_*\"}"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_NE(result.err.find(", gradients 0.8 KiB,"), std::string::npos) << "3 x 2 x (16 + 16) numbers: " << result.err;
  const io::SafetensorsFile before = model("biased", "20"), after = model("adapted", "20"),
                            early = model("adapted", "10");
  EXPECT_NO_THROW(before.load("layers.0.mixer.q.bias"));
  for (const io::TensorEntry& entry : before.tensors()) EXPECT_TRUE(is_same(before, after, entry.name)) << entry.name;
  for (const char* name : {"layers.0.mixer.q.adapter_up", "layers.2.mixer.q.adapter_down"})
    EXPECT_FALSE(is_same(early, after, name)) << name;
}

// From its own checkpoint of step 10 to the end. What the start took must not be there a second time.
TEST_F(StartRun, ARunGoesOnWithoutTheOneItBeganAs) {
  const std::vector<std::string> words{"train", path("three.txtpb"),
                                       "start={from:\"" + path("base") + "\",frozen:\"embedding*\"}", "--run",
                                       path("next")};
  ASSERT_EQ(test::run_weft(words).exit_code, 0);
  const std::string step = path("next/checkpoints/step-00000020");
  EXPECT_NE(io::read_file(path("next/start.txtpb")).find(path("base") + "/checkpoints/step-00000020"),
            std::string::npos);
  const std::string weights = io::read_file(step + "/model.safetensors");
  std::filesystem::remove_all(step);
  std::filesystem::rename(path("base"), path("away"));
  const auto result = test::run_weft(words);
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_NE(result.err.find("resumed at step 10"), std::string::npos) << result.err;
  EXPECT_EQ(io::read_file(step + "/model.safetensors"), weights);
  // A replay begins as the run did.
  std::filesystem::rename(path("away"), path("base"));
  const auto again = test::run_weft({"replay", path("next"), "--steps", "20"});
  EXPECT_EQ(again.exit_code, 0) << again.out << again.err;
}

// The teacher is the one of the first start, on every rank, though its run has newer weights.
TEST_F(StartRun, ATeacherStaysTheSame) {
  namespace fs = std::filesystem;
  const std::string early = path("base/checkpoints/step-00000010"), late = path("base/checkpoints/step-00000020");
  fs::rename(late, path("late"));  // as while that run trains
  for (const char* ranks : {"1", "2"}) {
    const std::string run = path(str("learner", ranks)), step = run + "/checkpoints/step-00000020";
    const std::vector<std::string> words{"train",
                                         path("three.txtpb"),
                                         "start={from:\"" + path("base") + "\",distill{}}",
                                         "--run",
                                         run,
                                         "--ranks",
                                         ranks,
                                         str("parallel.data=", ranks),
                                         "train.micro_batch=1"};
    const auto first = test::run_weft(words);
    ASSERT_EQ(first.exit_code, 0) << first.err;
    const std::string weights = io::read_file(step + "/model.safetensors");
    fs::remove_all(step);
    fs::rename(path("late"), late);
    const auto result = test::run_weft(words);
    ASSERT_EQ(result.exit_code, 0) << result.err;
    EXPECT_NE(result.err.find("resumed at step 10"), std::string::npos) << result.err;
    EXPECT_EQ(io::read_file(step + "/model.safetensors"), weights) << ranks;
    fs::rename(late, path("late"));
  }
  // Other weights in its place, and none.
  const std::vector<std::string> words{"train", path("three.txtpb"), "start={from:\"" + path("base") + "\",distill{}}",
                                       "--run", path("learner1"),    "train.micro_batch=1"};
  fs::remove_all(path("learner1/checkpoints/step-00000020"));
  fs::rename(early, path("early"));
  const auto gone = test::run_weft(words);
  EXPECT_NE(gone.exit_code, 0);
  EXPECT_NE(gone.err.find(early + ", which is gone"), std::string::npos) << gone.err;
  fs::copy(path("late"), early);
  const auto other = test::run_weft(words);
  EXPECT_NE(other.exit_code, 0);
  EXPECT_NE(other.err.find(early + ", whose weights have changed"), std::string::npos) << other.err;
}

// The principles of "Deconstructing Attention" in every second layer, and a schedule of HySparse before a layer that forgets.
TEST_F(StartRun, PlacedHybridsTrainAndSayTheirLayers) {
  auto layers_of = [&](const std::string& mixers, const std::string& pattern, const std::string& run) {
    const auto result = test::run_weft({"train", path("three.txtpb"), "model.layers=4", "model.mixer=" + mixers,
                                        "model.pattern=" + pattern, "train.tokens=256", "--run", path(run)});
    EXPECT_EQ(result.exit_code, 0) << result.err;
    const size_t at = result.err.find("layers: ");
    return at == std::string::npos ? "none" : result.err.substr(at, result.err.find('\n', at) - at);
  };
  for (const char* kind : {"key_only", "random_embedding", "fixed_text", "static_embedding", "none"})
    EXPECT_EQ(layers_of(str("[{deconstructed{heads:2,kind:", kind, "}},{softmax{heads:2}}]"), "0 1", kind),
              str("layers: 0 2 deconstructed ", kind, " (mixer 0), 1 3 softmax (mixer 1)"));
  EXPECT_EQ(layers_of("[{hysparse{heads:2,sparse:2,block:4,blocks:2,window:4}},{nats_l{heads:2,head_dim:4,chunk:8}}]",
                      "0 0 0 1", "sparse"),
            "layers: 0 hysparse full (mixer 0), 1-2 hysparse window 4 sparse (mixer 0), 3 nats_l (mixer 1)");
  const std::string meta = "hymba{heads:2,meta:2}", shared = "hymba{heads:2,window:4,meta:2,sharing:2}";
  EXPECT_EQ(
      layers_of("[{" + meta + "},{" + shared + "}]", "0 1 1 0", "hymba"),
      "layers: 0 3 hymba (mixer 0), 1 hymba window 4 with keys of its own (mixer 1), 2 hymba window 4 with keys of "
      "an earlier layer (mixer 1)");
  EXPECT_EQ(layers_of("[{rat{heads:2,chunk:4}},{softmax{heads:2,window:8}}]", "0 1", "rat"),
            "layers: 0 2 rat (mixer 0), 1 3 softmax window 8 (mixer 1)");
  EXPECT_EQ(layers_of("[{nats{heads:2,window:4}},{nats_l{heads:2,head_dim:4,chunk:8}}]", "0 1", "types"),
            "layers: 0 2 nats window 4 (mixer 0), 1 3 nats_l (mixer 1)");
  EXPECT_EQ(
      layers_of("[{softmax{heads:2}},{tlinformer{heads:2,depth:2,window:8,rows:4,hidden:16}}]", "0 1", "tlinformer"),
      "layers: 0 2 softmax (mixer 0), 1 3 tlinformer window 8 (mixer 1)");
  EXPECT_EQ(layers_of("[{flux{heads:2,window:8,prompt:4}},{hymba{heads:2}}]", "0 1", "flux"),
            "layers: 0 2 flux window 8 (mixer 0), 1 3 hymba (mixer 1)");
  // Of one mixer, whose layers differ by themselves.
  EXPECT_EQ(layers_of("[{hysparse{heads:2,sparse:1,block:4,blocks:2,window:4}}]", "0", "one"),
            "layers: 0 2 hysparse full, 1 3 hysparse window 4 sparse");
}

TEST_F(StartRun, WhatDoesNotFitIsOneError) {
  auto error_of = [&](const std::string& start) {
    const auto result = test::run_weft({"train", path("three.txtpb"), start, "--run", path("bad")});
    EXPECT_NE(result.exit_code, 0) << start;
    return result.err;
  };
  auto expect = [&](const std::string& start, const char* words) {
    const std::string error = error_of(start);
    EXPECT_NE(error.find(words), std::string::npos) << error;
  };
  const std::string from = "start={from:\"" + path("base") + "\"";
  expect("start={from:\"" + path("nowhere") + "\"}", "nowhere");
  expect(from + ",frozen:\"*.rooter.*\"}", "no parameter matches '*.rooter.*'");
  expect(from + ",frozen:\"*\"}", "every parameter is frozen");
  expect(from + ",distill{weight:2}}", "start.distill.weight");
}

}  // namespace
}  // namespace weft
