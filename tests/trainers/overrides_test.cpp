// The grammar of overrides: paths, values, lists, messages, clearing, errors.
#include "trainers/config/overrides.h"

#include <filesystem>

#include "tests/trainers/config_text.h"
#include "trainers/config/field_path.h"

namespace weft::config {
namespace {

using test::error_of;
using test::expect_parts;
using test::kTiny;
using test::kTwoMixers;

Experiment with(const char* text, const std::vector<std::string>& overrides) {
  return read_string(text, "tiny.txtpb", "/config", overrides).experiment;
}

TEST(Overrides, SetsFieldsByTheirType) {
  Experiment e = with(kTiny, {"model.dim=128", "model.init.std=1e-2", "model.embedding.tied=false",
                              "name=with = and spaces", "train.compute=bf16", "model.position.rope.base=500000"});
  EXPECT_EQ(e.model().dim(), 128);
  EXPECT_DOUBLE_EQ(e.model().init().std(), 0.01);
  EXPECT_FALSE(e.model().embedding().tied());
  EXPECT_EQ(e.name(), "with = and spaces");
  EXPECT_EQ(e.train().compute(), Compute::bf16);
  EXPECT_DOUBLE_EQ(e.model().position().rope().base(), 500000);
}

TEST(Overrides, LaterWins) { EXPECT_EQ(with(kTiny, {"seed=2", "seed=3"}).seed(), 3); }

TEST(Overrides, TakesSizesWithSuffix) {
  auto tokens = [](const std::string& value) { return with(kTiny, {"train.tokens=" + value}).train().tokens(); };
  EXPECT_EQ(tokens("2M"), 2'000'000);
  EXPECT_EQ(tokens("2.5G"), 2'500'000'000);
  EXPECT_EQ(tokens("2.3M"), 2'300'000);
  EXPECT_EQ(tokens("64k"), 64'000);
  EXPECT_EQ(tokens("64KiB"), 65'536);
  EXPECT_EQ(tokens("1.5MiB"), 1'572'864);
  EXPECT_EQ(tokens("1GiB"), 1'073'741'824);
  EXPECT_EQ(tokens("9223372036854775807"), INT64_MAX);
}

TEST(Overrides, TakesIntegersWithAnExponentWhereTheyAreWhole) {
  auto tokens = [](const std::string& value) { return with(kTiny, {"train.tokens=" + value}).train().tokens(); };
  EXPECT_EQ(tokens("1e6"), 1'000'000);
  EXPECT_EQ(tokens("1.5E3"), 1500);
  EXPECT_EQ(tokens("2.5e3k"), 2'500'000);
  EXPECT_EQ(tokens("1200e-2"), 12);
  EXPECT_EQ(tokens("9007199254740993e0"), 9007199254740993);  // not a double
  EXPECT_EQ(tokens("0e9"), 0);
}

TEST(Overrides, ReachesElementsByIndexStarOrAlone) {
  Experiment e = with(kTwoMixers, {"model.mixer[1].softmax.window=4", "data.train[*].weight=3"});
  EXPECT_EQ(e.model().mixer(0).softmax().window(), 8);
  EXPECT_EQ(e.model().mixer(1).softmax().window(), 4);
  EXPECT_EQ(e.data().train(0).weight(), 3);
  EXPECT_EQ(e.data().train(1).weight(), 3);
  EXPECT_EQ(with(kTiny, {"data.train.weight=7"}).data().train(0).weight(), 7);
}

TEST(Overrides, AppendsToLists) {
  Experiment e = with(kTiny, {"data.train+={path:\"b\" weight:2}", "optim.group+={adamw{}}",
                              "optim.group.adamw.betas+=0.8", "optim.group.adamw.betas+=0.9"});
  ASSERT_EQ(e.data().train_size(), 2);
  EXPECT_EQ(e.data().train(1).weight(), 2);
  ASSERT_EQ(e.optim().group(0).adamw().betas_size(), 2);
  EXPECT_DOUBLE_EQ(e.optim().group(0).adamw().betas(1), 0.9);
}

TEST(Overrides, ReplacesWholeLists) {
  Experiment e = with(kTwoMixers, {"data.train=[{path:\"c\"}]", "optim.group=[{adamw{betas:[0.5,0.6]}}]",
                                   "optim.group.adamw.betas=[0.7, 0.8]"});
  ASSERT_EQ(e.data().train_size(), 1);
  EXPECT_TRUE(e.data().train(0).path().ends_with("/c"));
  EXPECT_DOUBLE_EQ(e.optim().group(0).adamw().betas(0), 0.7);
  EXPECT_EQ(e.optim().group(0).adamw().betas_size(), 2);
}

TEST(Overrides, ReplacesMessagesByText) {
  Experiment e = with(kTwoMixers, {"model.mixer[0].softmax={heads: 2 qk_norm: true}", "optim.schedule.wsd={}"});
  EXPECT_EQ(e.model().mixer(0).softmax().heads(), 2);
  EXPECT_FALSE(e.model().mixer(0).softmax().has_window());
  EXPECT_TRUE(e.optim().schedule().has_wsd());
}

TEST(Overrides, ClearsFieldsElementsAndLists) {
  Experiment e = with(kTwoMixers, {"model.mixer[*].softmax.window=", "model.pattern=", "data.train[0]="});
  EXPECT_FALSE(e.model().mixer(0).softmax().has_window());
  EXPECT_FALSE(e.model().has_pattern());
  ASSERT_EQ(e.data().train_size(), 1);
  EXPECT_EQ(e.data().train(0).weight(), 2);
  EXPECT_EQ(with(kTwoMixers, {"data.train[*]="}).data().train_size(), 0);
  EXPECT_EQ(with(kTwoMixers, {"model.mixer="}).model().mixer_size(), 0);
  EXPECT_FALSE(with(kTiny, {"model.position.rope.scaling.yarn="}).model().position().has_rope())
      << "clearing makes nothing";
}

TEST(Overrides, SettingAMemberOfAOneofClearsTheOthers) {
  Experiment e = with(kTiny, {"data.val.path=/v.bin", "model.norm.layer.eps=1e-3", "model.norm.rms={}"});
  EXPECT_EQ(e.data().val().path(), "/v.bin");
  EXPECT_EQ(e.data().val().source_case(), Validation::kPath);
  EXPECT_TRUE(e.model().norm().has_rms());
}

TEST(Overrides, StarPassesOverElementsOfAnotherKind) {
  std::vector<std::string> custom = {"model.mixer[1]={custom{type:\"mine\"}}", "model.mixer[*].softmax.window=5"};
  Experiment e = with(kTwoMixers, custom);
  EXPECT_EQ(e.model().mixer(0).softmax().window(), 5);
  EXPECT_TRUE(e.model().mixer(1).has_custom());
  expect_parts(error_of(kTiny, {"model.mixer[0]={custom{type:\"mine\"}}", "model.mixer[*].softmax.window=5"}),
               {"model.mixer[*].softmax.window=5: no element", "'softmax'", "by its index"});
}

TEST(Overrides, ResolvesPathsAgainstTheWorkingDirectory) {
  std::string here = std::filesystem::current_path().string();
  Experiment e =
      with(kTiny, {"data.train.path=x/../text.txt", "data.train+={path:\"b.txt\"}", "data.val.path=/abs/v.txt"});
  EXPECT_EQ(e.data().train(0).path(), here + "/text.txt");
  EXPECT_EQ(e.data().train(1).path(), here + "/b.txt");
  EXPECT_EQ(e.data().val().path(), "/abs/v.txt");
}

TEST(Overrides, KeepsEmptyTextsApartFromClearing) {
  EXPECT_TRUE(with(kTiny, {"log.sample_prompt=\"\""}).log().has_sample_prompt());
  EXPECT_EQ(with(kTiny, {"log.sample_prompt=\"\""}).log().sample_prompt(), "");
  EXPECT_FALSE(with(kTiny, {"log.sample_prompt=x", "log.sample_prompt="}).log().has_sample_prompt());
}

struct Row {
  const char* argument;
  std::vector<std::string> parts;
};

TEST(Overrides, NamesTheArgumentAndWhatWasMeant) {
  const Row rows[] = {
      {"seed", {"seed: not of the form path=value."}},
      {"=3", {"not of the form path=value."}},
      {"model..dim=3", {"model..dim=3: 'model..dim' is not a path", "character 7"}},
      {"model.mixer[0=3", {"']' is missing"}},
      {"model.mixer[x].softmax.heads=3", {"the index 'x' is neither a number nor *"}},
      {"model.mixer[-1].softmax.heads=3", {"the index '-1'"}},
      {"model dim=3", {"unexpected ' ' at character 6"}},
      {"model.mixer[0].softmax.windw=3",
       {"model.mixer[0].softmax.windw=3: model.mixer[0].softmax has no field 'windw'. Did you mean 'window'?"}},
      {"modle.dim=3", {"the config has no field 'modle'. Did you mean 'model'?"}},
      {"model.mixer[2].softmax.heads=3", {"model.mixer[2] does not exist: model.mixer has 2 elements.", "[0, 1]"}},
      {"model.mixer.softmax.heads=3",
       {"model.mixer has 2 elements; which one is meant?", "model.mixer[0] to model.mixer[1]", "model.mixer[*]"}},
      {"optim.group.match=x", {"optim.group has no elements", "optim.group+="}},
      {"model.dim[0]=3", {"model.dim is not repeated"}},
      {"model.dim.x=3", {"model.dim has no field 'x': it is integer."}},
      {"model.dim=wide", {"model.dim=wide: 'wide' does not fit model.dim.", "an integer in [1, 1048576] features"}},
      {"model.dim=1.5", {"'1.5' does not fit model.dim"}},
      {"model.dim=0.5k1", {"does not fit model.dim"}},
      {"model.dim=1.0005k", {"'1.0005k' does not fit model.dim"}},
      {"train.tokens=1e30G", {"does not fit train.tokens"}},
      {"train.tokens=60K",
       {"'60K' does not fit train.tokens. Did you mean '60k' (60000) or '60KiB' (61440)?", "suffixes are k, M, G",
        "KiB, MiB", "1e6"}},
      {"train.tokens=2m", {"Did you mean '2M' (2000000) or '2MiB' (2097152)?", "suffixes are"}},
      {"train.tokens=3gb", {"Did you mean '3G' (3000000000) or '3GiB'"}},
      {"train.tokens=1_000_000", {"Did you mean '1000000'"}},
      {"train.tokens=2T", {"'2T' does not fit train.tokens.", "suffixes are k, M, G"}},
      {"train.tokens=1e-3", {"'1e-3' does not fit train.tokens."}},
      {"train.tokens=1.2345e3", {"does not fit train.tokens."}},
      {"train.tokens=1e19", {"does not fit train.tokens."}},
      {"model.mixer[0]={softmax{heads:4", {"the '{' of model.mixer[0] is not closed", "Add the missing '}'"}},
      {"model.mixer[0]={softmax{heads:4}", {"the text ends inside model.mixer[0].softmax", "Add the missing '}'"}},
      {"model.mixer[0]={softmax{heads:4}}}", {"this '}' closes nothing"}},
      {"model.init.std=small", {"'small' does not fit model.init.std", "a number in (0, inf)"}},
      {"model.init.std=nan", {"does not fit model.init.std"}},
      {"model.embedding.tied=yes", {"'yes' does not fit model.embedding.tied", "true or false"}},
      {"train.compute=fp32", {"train.compute has no value 'fp32'. Did you mean 'f32'?", "one of f32, bf16"}},
      {"train.device=unset", {"train.device has no value 'unset'", "auto, cpu, cuda"}},
      {"model.ffn=swiglu",
       {"model.ffn is a message with the fields swiglu, gelu, umoe, none, custom.", "model.ffn={...}"}},
      {"model.ffn={swiglo{}}", {"model.ffn={swiglo{}}: model.ffn has no field 'swiglo'. Did you mean 'swiglu'?"}},
      {"model.mixer[1]={softmax{heads:4 widow:2}}",
       {"model.mixer[1].softmax has no field 'widow'. Did you mean 'window'?"}},
      {"data.train=x", {"data.train is a list of 2 elements.", "data.train[0] to data.train[1]", "data.train=[...]"}},
      {"data.train=[{pth:\"x\"}]", {"data.train[0] has no field 'pth'. Did you mean 'path'?"}},
      {"data.train+=x", {"data.train[2] is a message with the fields path, weight, field."}},
      {"model.dim+=3", {"model.dim is not a list"}},
      {"data.train[0]+={}", {"data.train[0] is not a list"}},
  };
  for (const Row& row : rows) expect_parts(error_of(kTwoMixers, {row.argument}), row.parts);
}

TEST(Overrides, BlamesTheLastArgumentThatSetAValue) {
  expect_parts(error_of(kTiny, {"model.dim=64", "model.mixer[0].softmax.window=0"}),
               {"model.mixer[0].softmax.window=0: "});
  expect_parts(error_of(kTiny, {"model.mixer[0]={softmax{heads:4 window:0}}"}),
               {"model.mixer[0]={softmax{heads:4 window:0}}: model.mixer[0].softmax.window is 0"});
}

// What a file says of other files is relative to that file; its other words stay as they are, faults too.
TEST(Overrides, PathsOfAFileAreMadeAbsolute) {
  const auto absolute = [](const std::string& override) { return with_absolute_paths(override, "/grids"); };
  EXPECT_EQ(absolute("data.val.path=a.txt"), "data.val.path=/grids/a.txt");
  EXPECT_EQ(absolute("data.train[0].path=\"../my texts/a.txt\""), "data.train[0].path=/my texts/a.txt");
  for (const auto& [override, path] :
       {std::pair{"data.train={path:\"a.txt\" weight:2}", "/grids/a.txt"},
        {"data.train=[{path:'b.txt'},{path:\"../a.txt\"}]", "/a.txt"},
        {"data.train+={path: \"x/../a.txt\"}", "/grids/a.txt"},
        {"data={tokenizer{bytes{}} train{path:\"/b.txt\"} train{path:\"a.txt\"} val{fraction:0.1}}", "/grids/a.txt"}}) {
    const std::vector<std::string> other{absolute(override)};
    const Experiment e = with(kTiny, other);
    EXPECT_EQ(e.data().train(e.data().train_size() - 1).path(), path) << other[0];
  }
  const Experiment start = with(kTiny, {absolute("start={from:\"runs/a\",distill{}}")});
  EXPECT_EQ(start.start().from(), "/grids/runs/a");
  EXPECT_TRUE(start.start().has_distill());
  for (const char* override :
       {"model.dim=128", "data.val.path=/a.txt", "data.train={path:\"/a.txt\" weight:2}", "data.val.path=",
        "model.mixer[0]={preset: \"gate_out\"}", "optim.group[0].adamw.betas=[0.9,0.99]", "name=a.txt",
        "start={from:\"runs/a\",distil{}}", "data.trian={path:\"a.txt\"}", "data.val.path", "start=runs/a"})
    EXPECT_EQ(absolute(override), override);
}

}  // namespace
}  // namespace weft::config
