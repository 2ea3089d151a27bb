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
#include "trainers/run/facts.h"
#include "weft/core/allocator.h"

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
            "0 hysparse full (mixer 1), 1 hysparse window 128 sparse (mixer 1), 2-3 softmax (mixer 0)");
  load_string(kTiny, {"model.mixer=[{softmax{heads:4}},{hysparse{heads:4,sparse:0}}]", "model.pattern=0 1 0 1"});
  expect_parts(error_of(kTiny, {"model.mixer=[{flux{heads:4,window:8,prompt:9}}]"}), {"a prompt of 9 tokens"});
  expect_parts(error_of(kTiny, {"model.mixer=[{nats_l{heads:4,softmax_heads:3}}]"}), {"softmax_heads 3"});
}

// Mixers are made to see what they refuse, but not their weights, which may be many.
TEST(Config, ChecksMixersWithoutTheirWeights) {
  const MemoryStats before = allocator(Device::cpu()).stats();
  for (const char* mixer :
       {"gla{heads:4}", "delta{heads:4 decay:channel}", "hysparse{heads:4 sparse:0}", "mla{heads:4}"})
    load_string(kTiny, {"model.dim=4096", str("model.mixer=[{", mixer, "}]")});
  EXPECT_EQ(allocator(Device::cpu()).stats().num_allocations, before.num_allocations);
}

// Layers share keys within runs of their mixer: without such a run nothing would be shared.
TEST(Config, SharedKeysWithoutLayersThatShareThemAreRefused) {
  const std::string mixers = "model.mixer=[{hymba{heads:4}},{hymba{heads:4,window:4,sharing:2}}]";
  load_string(kTiny, {mixers, "model.pattern=0 1 1 0"});
  expect_parts(error_of(kTiny, {mixers, "model.pattern=0 1 0 1"}),
               {"model.mixer[1].hymba.sharing", "is 2", "no two layers in a row",
                "1 3 hymba window 4 with keys of its own (mixer 1)", "sharing: 1"});
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
  EXPECT_EQ(layers_text(hybrid), "0-2 4-6 softmax window 8 (mixer 0), 3 7 softmax (mixer 1)");
  const Model alike =
      load_string(kTiny,
                  {"model.mixer=[{delta{heads:4 decay:channel}},{delta{heads:4 decay:head}},{softmax{heads:4 position:"
                   "none}},{deconstructed{heads:4 kind:key_only}}]"})
          .experiment.model();
  EXPECT_EQ(layers_text(alike),
            "0 delta decay channel (mixer 0), 1 delta decay head (mixer 1), 2 softmax position none (mixer 2), "
            "3 deconstructed key_only (mixer 3)");
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

TEST(Config, InitialWeightsHaveAScaleEach) {
  const Loaded plain = load_string(kTiny, {"model.init.std=0.05"});
  LanguageModelOptions o = train::model_options(plain, 256);
  EXPECT_EQ(o.std, 0.05);
  EXPECT_FALSE(o.embedding_std);
  EXPECT_FALSE(o.out_std);
  expect_parts(explain("model.init.embedding_std", &plain), {"tied output head", "default:  std", "is not set"});
  const Loaded own =
      load_string(kTiny, {"model.init={embedding_std:1 out_std:0.03 scale_by_depth:false}", "model.ffn={none{}}"});
  o = train::model_options(own, 256);
  EXPECT_EQ(o.std, 0.02);
  EXPECT_EQ(o.embedding_std, 1);
  EXPECT_EQ(o.out_std, 0.03);
  EXPECT_FALSE(o.scales_init_by_depth);
  EXPECT_FALSE(o.has_ffn);
  EXPECT_DOUBLE_EQ(mixer_args(o, 0).out_std, 0.03);
  expect_parts(explain("model.init.out_std", &own), {"model.init.out_std = 0.03", "(0, inf)"});
  const std::string resolved = to_text(own.experiment);
  expect_parts(resolved, {"none {", "embedding_std: 1", "out_std: 0.03", "scale_by_depth: false"});
  EXPECT_EQ(resolved.find("swiglu"), std::string::npos);
  EXPECT_EQ(to_text(load_string(resolved).experiment), resolved);
  expect_parts(reference(), {"| `model.init.out_std` | number | std | (0, inf) |", "| `model.ffn.none` | message |"});
  expect_parts(str(train::run_facts(own.experiment, "")[1].second), {"context 32, rope", "no feed-forward network"});
}

TEST(Config, PresetsOfResidualStreamsCountTheSublayersOfMixersAlone) {
  const std::string preset = "model.residual={preset:\"attention_block\"}";
  EXPECT_EQ(load_string(kTiny, {preset}).experiment.model().residual().attention().blocks(), 8);
  const Loaded alone = load_string(kTiny, {"model.ffn={none{}}", preset});
  EXPECT_EQ(alone.experiment.model().residual().attention().blocks(), 4);
  EXPECT_NO_THROW(LanguageModel(train::model_options(alone, 256), Rng(1)));
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
