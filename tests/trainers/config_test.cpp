// Reading, defaults, checks, printing and comparison of configs.
#include <google/protobuf/descriptor.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/trainers/config_text.h"
#include "trainers/config/pattern.h"
#include "trainers/config/schema.h"
#include "trainers/config/translate.h"

namespace weft::config {
namespace {

using test::error_of;
using test::expect_parts;
using test::kTiny;
using test::kTwoMixers;
using test::load_string;

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}

TEST(Config, FillsDefaultsFromTheSchema) {
  Experiment e = load_string(kTiny).experiment;
  EXPECT_EQ(e.name(), "tiny");
  EXPECT_EQ(e.seed(), 1);
  EXPECT_TRUE(e.model().embedding().tied());
  EXPECT_DOUBLE_EQ(e.model().norm().rms().eps(), 1e-6);
  EXPECT_DOUBLE_EQ(e.model().position().rope().base(), 10000);
  EXPECT_EQ(e.model().position().rope().style(), RopeStyle::half);
  EXPECT_FALSE(e.model().position().rope().has_scaling());
  EXPECT_FALSE(e.model().mixer(0).softmax().has_window());
  EXPECT_TRUE(e.data().tokenizer().has_bytes());
  EXPECT_EQ(e.train().compute(), Compute::f32);
  EXPECT_EQ(e.train().device(), DeviceChoice::auto_);
  EXPECT_FALSE(e.optim().has_skip());
  EXPECT_EQ(e.checkpoint().keep_last(), 3);
}

// What a sparse layer reads must have been left by a layer of the same mixer.
TEST(Config, ASparseLayerWithoutItsFullLayerIsRefused) {
  const std::vector<std::string> schedule{"model.mixer=[{softmax{heads:4}},{hysparse{heads:4,sparse:1,blocks:2}}]"};
  auto with = [&](const std::string& more) {
    std::vector<std::string> all = schedule;
    all.push_back(more);
    return all;
  };
  expect_parts(error_of(kTiny, with("model.pattern=0 1 1 1")),
               {"sparse is 1", "layer 1 reads the keys of layer 0", "model.mixer[0]"});
  EXPECT_EQ(layers_text(load_string(kTiny, with("model.pattern=1 1 0 0")).experiment.model()),
            "0-1 hysparse (mixer 1), 2-3 softmax (mixer 0)");
  load_string(kTiny, {"model.mixer=[{softmax{heads:4}},{hysparse{heads:4,sparse:0}}]", "model.pattern=0 1 0 1"});
  expect_parts(error_of(kTiny, {"model.mixer=[{flux{heads:4,window:8,prompt:9}}]"}), {"a prompt of 9 tokens"});
  expect_parts(error_of(kTiny, {"model.mixer=[{nats_l{heads:4,softmax_heads:3}}]"}), {"softmax_heads 3"});
}

// Placements go over the pattern, in their order.
TEST(Config, PlacementsSayWhichLayersHaveAMixer) {
  const auto layers = [](const std::vector<std::string>& overrides) {
    std::vector<std::string> all = {"model.layers=8", "model.pattern="};
    all.insert(all.end(), overrides.begin(), overrides.end());
    const Model model = load_string(kTwoMixers, all).experiment.model();
    std::string text;
    for (int64_t layer = 0; layer < model.layers(); ++layer) {
      const std::vector<int> mixers = layer_mixers(model);
      text += str(mixers[static_cast<size_t>(layer) % mixers.size()]);
    }
    return text;
  };
  EXPECT_EQ(layers({}), "01010101");
  EXPECT_EQ(layers({"model.pattern=0 0 1"}), "00100100");
  EXPECT_EQ(layers({"model.placement=[{mixer:1,ratio:3}]"}), "00010001");
  EXPECT_EQ(layers({"model.placement=[{mixer:1,ratio:2}]"}), "00100100");
  EXPECT_EQ(layers({"model.placement=[{mixer:1,ratio:7}]"}), "00000001");
  EXPECT_EQ(layers({"model.placement=[{mixer:1,ratio:8}]"}), "00001000");  // none fits: in the middle
  EXPECT_EQ(layers({"model.placement=[{mixer:1,first_middle_last:true}]"}), "10001001");
  EXPECT_EQ(layers({"model.placement=[{mixer:1,layers:[2,5]}]"}), "00100100");
  EXPECT_EQ(layers({"model.placement=[{mixer:1,layers:[2],ratio:3}]"}), "00110001");
  EXPECT_EQ(layers({"model.placement=[{mixer:1,ratio:1},{mixer:0,layers:[7]}]"}), "01010100");
  EXPECT_EQ(layers({"model.pattern=1", "model.placement=[{mixer:0,layers:[0]}]"}), "01111111");
  const Model hybrid =
      load_string(kTwoMixers, {"model.layers=8", "model.placement=[{mixer:1,ratio:3}]"}).experiment.model();
  EXPECT_EQ(hybrid.pattern(), "0 0 0 1") << "a pattern stays";
  EXPECT_EQ(layers_text(hybrid), "0-2 4-6 softmax (mixer 0), 3 7 softmax (mixer 1)");
  const std::string resolved = to_text(load_string(kTwoMixers, {"model.placement=[{mixer:1,ratio:3}]"}).experiment);
  EXPECT_EQ(to_text(load_string(resolved).experiment), resolved);
}

TEST(Config, ATaskStandsInPlaceOfTexts) {
  const Loaded config = load_string(kTiny, {"data={task{copy{items:8,kind:delayed}}}"});
  EXPECT_EQ(config.experiment.data().task().test_rows(), 256);
  const auto options = std::get<data::CopyOptions>(train::recall_options(config.experiment.data().task()));
  EXPECT_EQ(options.items, 8);
  EXPECT_EQ(options.kind, data::CopyKind::delayed);
  const std::string resolved = to_text(config.experiment);
  EXPECT_EQ(to_text(load_string(resolved).experiment), resolved);
  EXPECT_TRUE(load_string(kTiny, {"data={task{}}"}).experiment.data().task().has_mqar());
}

TEST(Config, DerivesWhatFollowsFromOtherFields) {
  Experiment e = load_string(kTwoMixers, {"model.pattern="}).experiment;
  EXPECT_EQ(e.model().mixer(0).softmax().kv_heads(), 4);
  EXPECT_EQ(e.model().mixer(1).softmax().kv_heads(), 2);
  EXPECT_EQ(e.model().mixer(0).softmax().head_dim(), 16);
  EXPECT_EQ(e.model().pattern(), "0 1");
  EXPECT_EQ(e.model().ffn().swiglu().hidden(), 192);  // 170.67 rounded up to a multiple of 64
  EXPECT_EQ(e.train().tokens_per_step(), 32);
  ASSERT_EQ(e.optim().group_size(), 2);
  for (const auto& group : e.optim().group()) {
    ASSERT_EQ(group.adamw().betas_size(), 2);
    EXPECT_DOUBLE_EQ(group.adamw().betas(1), 0.95);
  }
  EXPECT_EQ(e.optim().group(0).rank(), 1) << "vectors";
  EXPECT_EQ(e.optim().group(0).adamw().weight_decay(), 0);
  EXPECT_DOUBLE_EQ(e.optim().group(1).adamw().weight_decay(), 0.1);
}

TEST(Config, RefusesImpossibleAttention) {
  struct Row {
    std::vector<std::string> overrides;
    std::vector<std::string> parts;
  };
  const std::string softmax = "model.mixer[0].softmax.";
  for (const Row& row : std::vector<Row>{
           {{softmax + "gate=[{position:out},{position:out}]"}, {"gate on out twice", "one gate per position"}},
           {{softmax + "gate=[{position:layer,per_head:true}]"},
            {"there are no heads", "out, values, keys or queries"}},
           {{softmax + "gate=[{activation:identity}]"}, {"bare projection", "sigmoid, silu or shifted_sigmoid"}},
           {{softmax + "components=3"}, {"3 components for 4 kv_heads", "divisor"}},
           {{softmax + "components=2", softmax + "bias=true"}, {"components with biases"}},
           {{softmax + "input_bias=true", softmax + "bias=true"}, {"biases on all projections"}},
           {{softmax + "l2_norm=true", softmax + "score_scale=true"}, {"score scale beside"}},
           {{softmax + "weights={kind:sigmoid}", softmax + "sink={}"}, {"a sink beside sigmoid", "value_bias"}},
           {{softmax + "weights={kind:signed_softmax}", softmax + "sink={kind:key_bias}"}, {"beside signed weights"}},
           {{softmax + "weights={divide_by_sum:true}"}, {"which is 1 already", "sigmoid, relu, elu1 or taylor2"}},
           {{softmax + "weights={kind:sigmoid,bias:row}", softmax + "soft_cap=5"}, {"bias per row under a soft cap"}},
           {{softmax + "score_shift=true"}, {"a score shift under softmax weights", "a sink of kind logit"}},
           {{softmax + "l2_norm=true", softmax + "qk_norm=true"}, {"l2_norm", "qk_norm"}}}) {
    SCOPED_TRACE(row.overrides[0]);
    std::vector<std::string> parts = row.parts;
    parts.push_back("model.mixer[0].softmax");
    expect_parts(error_of(kTwoMixers, row.overrides), parts);
  }
}

TEST(Config, RefusesImpossibleResidualStreams) {
  for (auto [override, part] : std::initializer_list<std::pair<const char*, const char*>>{
           {"model.residual={attention{blocks:99}}", "sublayers"},
           {"model.residual={delta{blocks:2,states:true}}", "stands beside blocks"},
           {"model.residual={attention{window:1,states:true}}", "outputs only"}})
    expect_parts(error_of(kTwoMixers, {override}), {"model.residual.", part});
  EXPECT_TRUE(load_string(kTwoMixers, {"model.residual={delta{}}"}).experiment.model().residual().delta().key_norm());
}

TEST(Config, KeepsZeroApartFromUnset) {
  Experiment e = load_string(kTiny, {"optim.clip_norm=0", "seed=0"}).experiment;
  EXPECT_EQ(e.optim().clip_norm(), 0);
  EXPECT_EQ(e.seed(), 0);
}

TEST(Config, ResolvedTextReadsBackAsItself) {
  for (const char* text : {kTiny, kTwoMixers}) {
    Experiment first = load_string(text).experiment;
    Experiment again = load_string(to_text(first)).experiment;
    EXPECT_EQ(to_text(first), to_text(again));
    EXPECT_TRUE(differences(first, again).empty());
  }
}

TEST(Config, PrintsJsonWithNumbersAsNumbers) {
  auto json = nlohmann::json::parse(to_json(load_string(kTiny, {"train.tokens=2500000000"}).experiment));
  EXPECT_EQ(json["train"]["tokens"], 2500000000);
  EXPECT_EQ(json["train"]["compute"], "f32");
  EXPECT_EQ(json["model"]["mixer"][0]["softmax"]["heads"], 4);
  EXPECT_DOUBLE_EQ(json["optim"]["group"][0]["adamw"]["betas"][0], 0.9);
  EXPECT_EQ(json["data"]["tokenizer"]["bytes"], nlohmann::json::object());
}

TEST(Config, ResolvesPathsOfAFileAgainstItsFolder) {
  Experiment e = load_string(replaced(kTiny, "text.txt", "../data/text_*.txt")).experiment;
  EXPECT_EQ(e.data().train(0).path(), "/data/text_*.txt");
  e = load_string(replaced(kTiny, "text.txt", "/abs/text.txt")).experiment;
  EXPECT_EQ(e.data().train(0).path(), "/abs/text.txt");
}

TEST(Config, ReadsFilesAndRefusesWhatIsNone) {
  namespace fs = std::filesystem;
  fs::path folder = fs::temp_directory_path() / ("weft_config_test_" + std::to_string(::getpid()));
  fs::create_directories(folder);
  std::ofstream(folder / "small.txtpb") << kTiny;
  Loaded loaded = load((folder / "small.txtpb").string(), {});
  EXPECT_EQ(loaded.experiment.name(), "small");
  EXPECT_EQ(loaded.experiment.data().train(0).path(), (folder / "text.txt").string());
  EXPECT_THROW(load((folder / "absent.txtpb").string(), {}), ConfigError);
  EXPECT_THROW(load(folder.string(), {}), ConfigError);
  fs::remove_all(folder);
}

struct TextRow {
  const char* from;
  const char* to;
  std::vector<std::string> parts;
};

// Line and column, path, offending word and what was meant, for mistakes of syntax.
TEST(Config, NamesLineColumnPathAndNearestWord) {
  const TextRow rows[] = {
      {"heads: 4",
       "heads: 4 windw: 3",
       {"tiny.txtpb:4:30: model.mixer[0].softmax has no field 'windw'. Did you mean 'window'?"}},
      {"dim: 64", "dimension: 64", {"tiny.txtpb:3:3: model has no field 'dimension'. Did you mean 'dim'?"}},
      {"seed: 1", "sead: 1", {"tiny.txtpb:1:1: the config has no field 'sead'. Did you mean 'seed'?"}},
      {"seed: 1", "zzz: 1", {"the config has no field 'zzz'. Its fields: name, seed, model"}},
      {"softmax {", "softmux {", {"tiny.txtpb:4:11: model.mixer[0] has no field 'softmux'. Did you mean 'softmax'?"}},
      {"tokens: 6400",
       "tokens: 6400 compute: bf61",
       {"tiny.txtpb:10:31: train.compute has no value 'bf61'. Did you mean 'bf16'?", "one of f32, bf16"}},
      {"dim: 64",
       "dim: wide",
       {"tiny.txtpb:3:8: 'wide' does not fit model.dim.", "an integer in [1, 1048576] features"}},
      {"dim: 64", "dim: 64.5", {"tiny.txtpb:3:", "model.dim", "an integer in [1, 1048576]"}},
      {"dim: 64", "dim: 64k", {"tiny.txtpb:3:"}},
      {"fraction: 0.1", "fraction: \"x\"", {"tiny.txtpb:8:", "data.val.fraction", "a number in (0, 1)"}},
      {"layers: 4", "layers: 99999999999999999999", {"tiny.txtpb:3:", "model.layers", "an integer in [1, 65536]"}},
      {"dim: 64", "dim: 64 dim: 65", {"tiny.txtpb:3:", "specified multiple times", "model"}},
      {"fraction: 0.1", "fraction: 0.1 path: \"x\"", {"tiny.txtpb:8:", "another member of oneof", "data.val"}},
      {"train { tokens: 6400 }", "train { tokens: 6400", {"tiny.txtpb:11:1: "}},
      {"seed: 1", "seed: 1 }", {"tiny.txtpb:1:9: this '}' closes nothing"}},
      {"train { tokens: 6400 }",
       "train { tokens: 6400",
       {"tiny.txtpb:11:1: the text ends inside train: its '{' at tiny.txtpb:10:7 is not closed.",
        "Add the missing '}'."}},
      {"train { tokens: 6400 }",
       "optim { group { adamw { lr: 1e-3",
       {"the text ends inside optim.group[0].adamw", "tiny.txtpb:10:23", "and 2 around it", "Add 3 times '}'"}},
      {"heads: 4 } }",
       "heads: 4 }",
       {"tiny.txtpb:6:1: model has no field 'data'. A '}' seems to be missing before it: that of model at "
        "tiny.txtpb:2:7."}},
      {"dim: 64", "dim: 64K", {"tiny.txtpb:3:8: '64K' does not fit model.dim.", "no suffixes", "command line"}},
      {"tokens: 6400", "tokens: 1e6", {"tiny.txtpb:10:17: '1e6' does not fit train.tokens.", "Write 1000000:"}},
      {"tokens: 6400", "tokens: 2M", {"tiny.txtpb:10:17: '2M' does not fit train.tokens.", "Write 2000000:"}},
  };
  for (const TextRow& row : rows) expect_parts(error_of(replaced(kTiny, row.from, row.to)), row.parts);
}

TEST(Config, FindsThePathInsideLists) {
  const std::string text = R"(optim { group: [ { match: "a" }, { match: "b" muno {} } ] })";
  expect_parts(error_of(text), {"tiny.txtpb:1:47: optim.group[1] has no field 'muno'. Did you mean 'muon'?"});
}

struct CheckRow {
  std::vector<std::string> overrides;
  std::vector<std::string> parts;
};

// Impossible configs: argument, path, value, allowed range or fix.
TEST(Config, RefusesImpossibleConfigs) {
  const CheckRow rows[] = {
      {{"model.mixer[0].softmax.heads=5"},
       {"model.mixer[0].softmax.heads=5: model.mixer[0].softmax.heads is 5, which does not divide model.dim 64.",
        "2, 4, 8"}},
      {{"model.mixer[0].softmax.kv_heads=3"}, {"kv_heads is 3, which does not divide heads 4.", "1, 2, 4"}},
      {{"model.mixer[0].softmax.kv_heads=8"}, {"kv_heads is 8, which does not divide heads 4."}},
      {{"model.mixer[0].softmax.window=0"},
       {"window is 0, outside the allowed range.", "an integer in [1, 2147483647] tokens"}},
      {{"model.mixer[0].softmax.dropout=1"}, {"dropout is 1, outside", "[0, 1)"}},
      {{"model.mixer[0].softmax.dropout=-0.1"}, {"dropout is -0.1, outside", "[0, 1)"}},
      {{"model.mixer[0].softmax.soft_cap=0"}, {"soft_cap is 0, outside", "(0, inf)"}},
      {{"model.mixer[0].softmax.head_dim=15"}, {"model.mixer[0].softmax.head_dim gives heads of width 15", "even"}},
      {{"model.dim=12"}, {"tiny.txtpb:4:21: model.mixer[0].softmax.heads gives heads of width 3", "even"}},
      {{"model.position.rope.fraction=0.3"}, {"model.position.rope.fraction is 0.3: it rotates 4.8 of 16 features"}},
      {{"model.position.rope.fraction=0"}, {"fraction is 0, outside", "(0, 1]"}},
      {{"model.position.rope.scaling.llama3.low_freq_factor=4"},
       {"low_freq_factor is 4, must be below high_freq_factor 4"}},
      {{"model.position.rope.scaling={yarn{factor:2 original_context:64 beta_slow:40}}"},
       {"beta_slow is 40, must be below beta_fast 32"}},
      {{"model.position.rope.scaling={linear{}}"},
       {"model.position.rope.scaling.linear.factor is missing", "a number in [1, inf)"}},
      {{"model.pattern=0 1"}, {"model.pattern is \"0 1\": index 1 is out of range, there is 1 mixer.", "[0, 0]"}},
      {{"model.pattern=0 x"}, {"'x' is not an index"}},
      {{"model.pattern=\" \""}, {"names no mixer"}},
      {{"model.pattern=0 0 0 0 0"}, {"5 entries for 4 layers"}},
      {{"model.placement=[{mixer:1,ratio:3}]"},
       {"model.placement[0].mixer is 1; there is 1 mixer.", "Use an index in [0, 0], or add a mixer."}},
      {{"model.placement=[{mixer:0}]"},
       {"model.placement[0] names no layer.", "Set layers, first_middle_last or ratio."}},
      {{"model.placement=[{mixer:0,layers:[1,4]}]"}, {"model.placement[0].layers names layer 4 of 4.", "[0, 3]"}},
      {{"model.placement=[{ratio:3}]"}, {"model.placement[0].mixer is missing"}},
      {{"data={task{},train{path:\"a.txt\"}}"}, {"data.train stands beside data.task", "Leave one of the two out."}},
      {{"data={task{},val{fraction:0.1}}"}, {"data.val stands beside data.task"}},
      {{"data={task{},tokenizer{characters{}}}"}, {"data.tokenizer stands beside data.task"}},
      {{"data={task{},first_token:true}"}, {"data.first_token stands beside data.task"}},
      {{"data={task{mqar{pairs:9}}}"},
       {"data.task is impossible: mqar: a row of 32 tokens, and the task needs 36", "lengthen the row"}},
      {{"data={task{state{kind:permutation,size:6}}}"}, {"data.task is impossible: state: size is 6", "use 2 to 5"}},
      {{"model.mixer="}, {"model.mixer is missing"}},
      {{"model.mixer={custom{}}"}, {"model.mixer[0].custom.type is missing"}},
      {{"model.mixer={mla{heads:3}}"}, {"model.mixer[0].mla is impossible: mla: dim 64 is not a multiple of heads 3"}},
      {{"model.mixer={nexus{heads:4 kv_heads:2 layer_values:true}}"},
       {"model.mixer[0].nexus is impossible", "kv_heads"}},
      {{"model.mixer={simplified{heads:5 kind:super}}"}, {"model.mixer[0].simplified is impossible", "heads 5"}},
      {{"model.mixer={multi_token{heads:4 key_kernel:4}}"}, {"model.mixer[0].multi_token is impossible", "odd"}},
      {{"model.mixer={moa{experts:4 active:5}}"}, {"model.mixer[0].moa is impossible: moa: 5 active of 4 experts"}},
      {{"model.mixer={umoe{experts:4}}"}, {"model.mixer[0].umoe.active is missing"}},
      {{"model.mixer[0].softmax.head_mixture={active:4 shared:1}"},
       {"model.mixer[0].softmax is impossible: softmax: head mixture of 1 shared and 4 chosen of 4 heads"}},
      {{"model.ffn={umoe{active:2}}"}, {"model.mixer[0] is not umoe, and model.ffn.umoe runs the experts"}},
      {{"model.mixer={umoe{experts:4 active:2}}", "model.ffn={umoe{active:5}}"},
       {"model.ffn.umoe.active is 5, and there are 4 experts."}},
      {{"model.dim="}, {"model.dim=: model.dim is missing: Width of the residual stream.", "model.dim=..."}},
      {{"model.layers=0"}, {"model.layers is 0, outside", "[1, 65536]"}},
      {{"model.vocab=100"}, {"model.vocab is 100, but the bytes tokenizer has 256 ids."}},
      {{"model.vocab=300", "data.end_of_text=300"}, {"data.end_of_text is 300, but model.vocab is 300.", "[0, 299]"}},
      {{"model.norm.layer.eps=0"}, {"model.norm.layer.eps is 0, outside", "(0, 1)"}},
      {{"model.init.std=-1"}, {"model.init.std is -1, outside"}},
      {{"model.residual.standard.dropout=1.5"}, {"model.residual.standard.dropout is 1.5, outside"}},
      {{"data.train="}, {"data.train is missing"}},
      {{"data.train.path="}, {"data.train[0].path is missing"}},
      {{"data.train.weight=0"}, {"data.train[0].weight is 0, outside", "(0, inf)"}},
      {{"data.val="}, {"data.val names no source", "data.val.fraction=0.1"}},
      {{"data.val.fraction=1"}, {"data.val.fraction is 1, outside", "(0, 1)"}},
      {{"data.tokenizer.gpt2.vocab=v.json"}, {"data.tokenizer.gpt2.merges is missing"}},
      {{"data.tokenizer={bpe{}}"}, {"data.tokenizer.bpe.file is missing"}},
      {{"data.tokenizer={ids{}}"}, {"data.tokenizer.ids says nothing", "model.vocab"}},
      {{"model.adapter=[{rank:4}]"}, {"model.adapter[0].match is missing"}},
      {{"train.tokens="}, {"train.tokens is missing"}},
      {{"train.tokens_per_step=33"},
       {"train.tokens_per_step is 33, not a multiple of micro_batch 1 x model.context 32 x parallel.data 1 = 32.",
        "32 or 64"}},
      {{"train.micro_batch=3", "train.tokens_per_step=64"},
       {"not a multiple of micro_batch 3", "Use train.micro_batch=2, or use train.tokens_per_step=96."}},
      {{"train.micro_batch=4", "train.tokens_per_step=128", "model.context=10M"},
       {"model.context=10M: model.context makes train.tokens_per_step, 128, less than one pass",
        "micro_batch 4 x model.context 10000000 x parallel.data 1 = 40000000", "Lower model.context, or raise",
        "train.tokens (6400) to 40000000"}},
      {{"train.tokens_per_step=64", "train.micro_batch=5"},
       {"train.micro_batch=5: train.micro_batch makes train.tokens_per_step, 64,", "train.micro_batch=2, or"}},
      {{"train.attention=cudnn"},
       {"train.attention is cudnn, whose kernels are for GPUs and bf16.", "train.compute=bf16"}},
      {{"train.attention=cudnn", "train.compute=bf16", "train.device=cpu"}, {"train.device=cuda"}},
      {{"train.attention=wgmma"},
       {"train.attention is wgmma, whose kernels are for GPUs and bf16.", "train.compute=bf16"}},
      {{"train.tokens=31"}, {"train.tokens is 31, less than one step of 32 tokens"}},
      {{"train.max_seconds=0"}, {"train.max_seconds is 0, outside", "seconds"}},
      {{"train.threads=0"}, {"train.threads is 0, outside", "[1, 4096]"}},
      {{"optim.group+={adamw{betas:0.9}}"}, {"optim.group[0].adamw.betas has 1 values, AdamW takes 2."}},
      {{"optim.group+={adamw{betas:0.9 betas:1}}"}, {"optim.group[0].adamw.betas[1] is 1, outside", "[0, 1)"}},
      {{"optim.group+={adamw{lr:-1e-3}}"}, {"optim.group[0].adamw.lr is -0.001, outside", "(0, inf)"}},
      {{"optim.group+={adamw{lr:inf}}"}, {"optim.group[0].adamw.lr is inf, outside"}},
      {{"optim.group+={adamw{lr:nan}}"}, {"optim.group[0].adamw.lr is nan, outside"}},
      {{"optim.group+={lion{betas:0.9}}"}, {"optim.group[0].lion.betas has 1 values, Lion takes 2."}},
      {{"optim.group+={schedule_free{betas:0.9}}"}, {"optim.group[0].schedule_free.betas needs 2 values"}},
      {{"optim.group+={schedule_free{betas:0 betas:0.9}}"},
       {"optim.group[0].schedule_free.betas", "the first is not 0"}},
      {{"optim.group+={sgd{momentum:1}}"}, {"optim.group[0].sgd.momentum is 1, outside", "[0, 1)"}},
      {{"optim.group+={sgd{momentum:0 nesterov:true}}"}, {"optim.group[0].sgd.nesterov looks ahead", "momentum"}},
      {{"optim.schedule={inverse_sqrt{warmup:900}}"}, {"optim.schedule.inverse_sqrt.warmup is 900 steps"}},
      {{"optim.group+={muon{}}"}, {"optim.group[0].muon must go with matrices", "rank=2"}},
      {{"optim.group+={rank:1 muon{}}"}, {"optim.group[0].rank must go with matrices"}},
      {{"optim.group+={}", "optim.group+={rank:2}"}, {"optim.group[1] is never reached"}},
      {{"optim.schedule.cosine.warmup=201"},
       {"optim.schedule.cosine.warmup is 201 steps, but the training has only 200", "at most 200"}},
      {{"optim.schedule.wsd.warmup=180"}, {"warmup is 180 steps and the decay 40: together more than the 200"}},
      {{"optim.schedule.wsd.decay_fraction=1.1"}, {"decay_fraction is 1.1, outside", "[0, 1]"}},
      {{"optim.clip_norm=-1"}, {"optim.clip_norm is -1, outside", "[0, inf)"}},
      {{"optim.skip.window=1"}, {"optim.skip.window is 1, outside", "[2, 1048576] steps"}},
      {{"parallel.context=64"}, {"parallel.context is 64 ranks for a sequence of 32 tokens", "one rank per token"}},
      {{"model.mixer={multi_token{heads:2}}", "parallel.context=2"},
       {"parallel.context is 2, and model.mixer[0] convolves the scores of neighbouring", "parallel.context=1"}},
      {{"optim.group=[{schedule_free{}}]", "optim.schedule={constant{}}", "parallel.context=2", "parallel.zero=1"},
       {"parallel.zero is 1, and optim.group[0] is schedule_free", "parallel.zero=0"}},
      {{"parallel.zero=1"}, {"parallel.zero is 1"}},
      {{"log.every=0"}, {"log.every is 0, outside", "[1, 1000000000000000] steps"}},
      {{"checkpoint.keep_last=0"}, {"checkpoint.keep_last is 0, outside"}},
      {{"name=a/b"}, {"name is \"a/b\"", "letters"}},
      {{"seed=-1"}, {"seed is -1, outside", "[0, inf)"}},
  };
  for (const CheckRow& row : rows) expect_parts(error_of(kTiny, row.overrides), row.parts);
}

TEST(Config, AcceptsWhatOnlyLooksImpossible) {
  load_string(kTiny, {"model.mixer[0].softmax.heads=5", "model.mixer[0].softmax.head_dim=8"});
  load_string(kTiny, {"model.mixer[0].softmax.head_dim=15", "model.position={none{}}"});
  load_string(kTiny, {"model.mixer[0].softmax.window=1000"});
  load_string(kTiny, {"optim.schedule.wsd.warmup=160"});
  load_string(kTiny, {"optim.group+={rank:2 muon{}}", "optim.group+={}"});
  load_string(kTiny, {"model.position.rope.scaling={llama3{}}"});
  load_string(kTiny, {"model.mixer={custom{type:\"mine\" number{key:\"x\" value:1}}}"});
}

TEST(Config, PointsAtTheLineOfAValueInTheFile) {
  std::string text = replaced(kTiny, "heads: 4", "heads: 4\n    kv_heads: 3");
  expect_parts(error_of(text), {"tiny.txtpb:5:5: model.mixer[0].softmax.kv_heads is 3"});
}

TEST(Config, ListsDifferencesByPath) {
  Experiment a = load_string(kTiny).experiment;
  Experiment b =
      load_string(kTiny, {"model.mixer[0].softmax.window=8", "optim.schedule.linear={}", "seed=2"}).experiment;
  std::vector<Difference> all = differences(a, b);
  auto find = [&](const std::string& path) {
    for (const Difference& d : all)
      if (d.path == path) return str(d.a, " -> ", d.b);
    return std::string("none");
  };
  EXPECT_EQ(find("seed"), "1 -> 2");
  EXPECT_EQ(find("model.mixer[0].softmax.window"), " -> 8");
  EXPECT_EQ(find("optim.schedule.cosine.warmup"), "0 -> ");
  EXPECT_EQ(find("optim.schedule.linear.warmup"), " -> 0");
  EXPECT_EQ(find("model.dim"), "none");
}

TEST(Config, RefusesARunFolderWithAnotherConfig) {
  namespace fs = std::filesystem;
  fs::path run = fs::temp_directory_path() / ("weft_run_test_" + std::to_string(::getpid()));
  fs::create_directories(run);
  Experiment a = load_string(kTiny).experiment;
  std::ofstream(run / "config.txtpb") << to_text(a);
  EXPECT_NO_THROW(require_same(a, run.string(), {}));
  Experiment b = load_string(kTiny, {"optim.group+={adamw{lr:0.5}}", "log.every=7"}).experiment;
  try {
    require_same(b, run.string(), {"log."});
    ADD_FAILURE() << "no error";
  } catch (const ConfigError& error) {
    expect_parts(error.what(), {run.string(), "optim.group[0].adamw.lr: 0.001 there, 0.5 now", "--run"});
    EXPECT_EQ(std::string(error.what()).find("log.every"), std::string::npos);
  }
  fs::remove_all(run);
}

// The schema is the documentation: nothing in it may lack a comment, a number its range, a value its default.
void check_documented(const Descriptor& message, const std::string& path) {
  EXPECT_NE(comment(message), "") << message.full_name();
  for (int i = 0; i < message.field_count(); ++i) {
    const FieldDescriptor& field = *message.field(i);
    std::string here = str(path, ".", field.name());
    Facts known = facts(field);
    EXPECT_NE(comment(field), "") << here;
    EXPECT_TRUE(field.has_presence() || field.is_repeated()) << here;
    if (field.message_type()) {
      check_documented(*field.message_type(), here);
      continue;
    }
    bool has_default =
        known.is_required || !known.preset.empty() || !known.unset.empty() || field.real_containing_oneof();
    EXPECT_TRUE(has_default) << here;
    bool is_number =
        field.cpp_type() == FieldDescriptor::CPPTYPE_INT64 || field.cpp_type() == FieldDescriptor::CPPTYPE_DOUBLE;
    bool is_free = message.name() == "CustomNumber";
    EXPECT_TRUE(!is_number || is_free || !known.range.text.empty()) << here;
    if (field.enum_type()) { EXPECT_EQ(field.enum_type()->value(0)->name(), "unset") << here; }
  }
}

TEST(Config, SchemaDocumentsEveryField) { check_documented(*Experiment::descriptor(), ""); }

TEST(Config, PrintsTheReferenceOfAllFields) {
  expect_parts(reference(),
               {"| `model.dim` | integer | required | [1, 1048576] | features | Width of the residual stream. |",
                "| `train.compute` | f32 \\| bf16 | f32 |", "| `optim.group[].adamw.betas[]` |",
                "| `optim.schedule.cosine` | message | the default choice |"});
}

TEST(Config, ExplainsAFieldItsValueAndWhereItWasSet) {
  expect_parts(explain("model.mixer[0].softmax.window", nullptr),
               {"model.mixer.softmax.window", "A token sees itself", "type:     integer", "all earlier tokens",
                "[1, 2147483647]", "tokens"});
  Loaded config = load_string(kTwoMixers, {"train.tokens=64k"});
  expect_parts(explain("model.mixer.softmax.window", &config),
               {"model.mixer[0].softmax.window = 8  (tiny.txtpb:4:30)", "model.mixer[1].softmax.window is not set"});
  expect_parts(explain("train.tokens", &config), {"train.tokens = 64000  (train.tokens=64k)"});
  expect_parts(explain("train.compute", &config), {"train.compute = f32  (default)"});
  expect_parts(explain("optim.schedule", nullptr), {"fields:", "constant", "the default choice"});
  try {
    explain("model.mixer.softmax.windw", nullptr);
    ADD_FAILURE() << "no error";
  } catch (const ConfigError& error) { expect_parts(error.what(), {"has no field 'windw'. Did you mean 'window'?"}); }
}

// Whatever bytes stand in a config file: an error or a config, nothing else.
TEST(Config, SurvivesTruncatedAndChangedText) {
  std::string text = kTwoMixers;
  for (size_t n = 0; n < text.size(); ++n) {
    std::vector<std::string> all = {text.substr(0, n), text, text, text, text};
    all[1][n] = '{';
    all[2][n] = '"';
    all[3][n] = ']';
    all[4].erase(n, 1);
    for (const std::string& broken : all) {
      try {
        load_string(broken);
      } catch (const ConfigError& error) { EXPECT_NE(error.problem(), ""); }
    }
  }
}

}  // namespace
}  // namespace weft::config
