// Commands that check and compare: what they say, and that a check of nothing fails.
#include <nlohmann/json.hpp>

#include "tests/trainers/cli_fixture.h"
#include "weft/io/checkpoint.h"

namespace weft::cli {
namespace {

TEST_F(Cli, ChecksMixersAndListsEveryResult) {
  Outcome run = weft("check --mixer gqa --json");
  EXPECT_EQ(run.code, 0) << run.out;
  auto json = nlohmann::json::parse(run.out);
  EXPECT_TRUE(json["passed"]);
  ASSERT_EQ(json["results"].size(), 14u);  // one for each check
  EXPECT_EQ(json["results"][0]["variant"], "gqa");
  EXPECT_EQ(json["results"][0]["check"], "reference");
  EXPECT_EQ(json["results"][0]["result"], "passed");
  run = weft("check --mixer mha --check decode");
  expect_parts(run.out, {"mha", "decode", "passed", "conformance: 1 variants, 1 checks: 1 passed, 0 failed"});
  expect_parts(weft("check --mixer mha --table").out,
               {"| `mha` | `softmax(q k^T / sqrt(K)) v` | `softmax { heads: 4 }` | 1706.03762 |", " yes |"});
}

// Where every case is refused, the table of refusals is no success. One case that runs is enough.
TEST_F(Cli, AParityThatComparesNothingFails) {
  expect_parts(weft("parity --help").out, {"exit code 4", "nothing could be compared"});
  const std::string refused = "ulysses: 4 query heads for 3 ranks that divide heads";
  auto parity = [&](const std::string& more) { return weft("parity run.txtpb --steps 0 " + more); };
  auto expect_json = [](const Outcome& run, bool passed, int compared, size_t rows) {
    const auto json = nlohmann::json::parse(run.out);
    EXPECT_EQ(json["passed"], passed) << run.out;
    EXPECT_EQ(json["compared"], compared) << run.out;
    EXPECT_EQ(json["refused"], static_cast<int>(rows) - compared) << run.out;
    EXPECT_EQ(json["rows"].size(), rows) << run.out;
  };
  Outcome none = parity("--ranks 3 --layouts zigzag --schemes ulysses");
  EXPECT_EQ(none.code, kCheckFailed) << none.out;
  expect_parts(none.out, {"refused: " + refused, "0 of 0 equal one rank"});
  expect_parts(none.err, {"error: weft parity: nothing was compared", refused, "--ranks or --schemes"});
  none = parity("--ranks 3,5 --layouts striped,zigzag --schemes ulysses --json");
  EXPECT_EQ(none.code, kCheckFailed) << none.out;
  expect_json(none, false, 0, 4);
  expect_parts(none.err, {"nothing was compared", refused, "4 query heads for 5 ranks"});
  EXPECT_EQ(none.err.find(refused), none.err.rfind(refused)) << "once, whatever the layouts: " << none.err;
  const Outcome some = parity("--ranks 3 --layouts zigzag --schemes ulysses,ring --json");
  EXPECT_EQ(some.code, kSuccess) << some.out << some.err;
  EXPECT_EQ(some.err, "");
  expect_json(some, true, 1, 2);
}

TEST_F(Cli, ACheckOfNothingFails) {
  for (const Row& row : std::initializer_list<Row>{
           {"gradcheck --mixer nats --shapes 4x8", {"nothing was checked", "--mixer nats", "another --mixer"}},
           {"check --mixer nats --check gradient", {"nothing was checked", "--mixer nats", "--check gradient"}}}) {
    Outcome run = weft(row.arguments);
    EXPECT_EQ(run.code, kCheckFailed) << row.arguments;
    expect_parts(run.err, row.parts);
    expect_parts(run.out, {"unsupported"});
    run = weft(std::string(row.arguments) + " --json");
    EXPECT_EQ(run.code, kCheckFailed) << row.arguments;
    EXPECT_EQ(nlohmann::json::parse(run.out)["passed"], false) << run.out;
  }
}

// Weights of a model in `file`; `at9` is the first number of layers.9.w, layer 10 has `wide` columns.
void write_weights(const fs::path& file, double at9, int64_t wide = 2, bool has_norm = true) {
  auto layer9 = Tensor::from<float>({static_cast<float>(at9), 2, NAN, 4}, {2, 2});
  std::vector<io::NamedTensor> tensors = {{"layers.10.w", Tensor::full({2, wide}, 1)},
                                          {"layers.9.w", layer9},
                                          {"head.w", Tensor::full({3}, 1)},
                                          {"embedding.w", Tensor::full({3}, 1)}};
  if (has_norm) tensors.push_back({"norm.w", Tensor::full({3}, 1)});
  io::write_safetensors(file.string(), tensors);
}

TEST_F(Cli, ComparesWeightsInLayerOrder) {
  write_weights(folder_ / "a.safetensors", 1);
  write_weights(folder_ / "b.safetensors", 1);
  Outcome same = weft("compare a.safetensors b.safetensors");
  EXPECT_EQ(same.code, kSuccess) << same.err;
  expect_parts(same.out, {"5 tensors: 5 equal, 0 close, 0 differ, 0 ignored\n"});
  std::vector<size_t> places;
  for (const char* name : {"embedding.w", "layers.9.w", "layers.10.w", "head.w", "norm.w"})
    places.push_back(same.out.find(name));
  EXPECT_TRUE(std::is_sorted(places.begin(), places.end())) << same.out;

  write_weights(folder_ / "b.safetensors", 1.25, 3, false);
  Outcome differs = weft("compare a.safetensors b.safetensors --json");
  EXPECT_EQ(differs.code, kCheckFailed);
  auto json = nlohmann::json::parse(differs.out);
  EXPECT_FALSE(json["same"]);
  EXPECT_EQ(json["tensors"][1]["name"], "layers.9.w");
  EXPECT_EQ(json["tensors"][1]["largest"], 0.25);
  EXPECT_EQ(json["tensors"][1]["beyond"], 1);
  expect_parts(weft("compare a.safetensors b.safetensors").out,
               {"DIFFERS  layers.9.w", "largest 0.25 at 0", "F32 [2, 2] in A, F32 [2, 3] in B", "only in A: F32 [3]",
                "the first that differs is layers.9.w"});
}

TEST_F(Cli, ComparesWithinTolerancesAndRules) {
  write_weights(folder_ / "a.safetensors", 1);
  write_weights(folder_ / "b.safetensors", 1.25);
  EXPECT_EQ(weft("compare a.safetensors b.safetensors --rtol 0.2").code, kSuccess);
  EXPECT_EQ(weft("compare a.safetensors b.safetensors --rtol 0.19").code, kCheckFailed);
  EXPECT_EQ(weft("compare a.safetensors b.safetensors --atol 0.25").code, kSuccess);
  std::ofstream(folder_ / "rules") << "# layers may differ\nlayers.9.*  rtol=0.1 atol=0.2\n";
  EXPECT_EQ(weft("compare a.safetensors b.safetensors --rules rules").code, kSuccess);
  std::ofstream(folder_ / "rules") << "*.9.* ignore\n";
  Outcome ignored = weft("compare a.safetensors b.safetensors --rules rules");
  EXPECT_EQ(ignored.code, kSuccess);
  expect_parts(ignored.out, {"4 equal, 0 close, 0 differ, 1 ignored"});
  std::ofstream(folder_ / "rules") << "* ignore\n";
  Outcome nothing = weft("compare a.safetensors b.safetensors --rules rules --json");
  EXPECT_EQ(nothing.code, kCheckFailed);
  EXPECT_EQ(nlohmann::json::parse(nothing.out)["same"], false);
  expect_parts(nothing.err, {"nothing was compared", "ignores all 5 tensors", "rules"});
  std::ofstream(folder_ / "rules") << "layers.* rtol=much\n";
  Outcome wrong = weft("compare a.safetensors b.safetensors --rules rules");
  EXPECT_EQ(wrong.code, kUsageError);
  expect_parts(wrong.err, {"rules:1: not a rule: layers.* rtol=much", "PATTERN ignore"});
  EXPECT_EQ(weft("compare a.safetensors absent").code, kUsageError);
  EXPECT_EQ(weft("compare a.safetensors b.safetensors --rtol -1").code, kUsageError);
}

TEST_F(Cli, ComparesCheckpoints) {
  auto save = [&](const char* run, double value) {
    io::save_checkpoint((folder_ / run / "checkpoints").string(),
                        {.step = 1, .model = {{"w", Tensor::full({2}, value)}}, .optimizer = {}});
  };
  save("one", 1);
  save("two", 1);
  save("three", 2);
  EXPECT_EQ(weft("compare one two").code, kSuccess);
  EXPECT_EQ(weft("compare one/checkpoints/step-00000001 two").code, kSuccess);
  EXPECT_EQ(weft("compare one three").code, kCheckFailed);
}

}  // namespace
}  // namespace weft::cli
