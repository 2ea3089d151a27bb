// No field of the config translates silently. Every field of the schema is set to another legal value, by reflection, in configs in which
// it has a meaning. Then the options of the library differ, or the field stands in the table of fields that the run itself reads, or the
// config is refused with the field's name.
#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <sstream>

#include "tests/trainers/config_text.h"
#include "tests/trainers/options_dump.h"
#include "tools/bench/training_step.h"
#include "trainers/config/options_text.h"
#include "trainers/config/scalar.h"
#include "trainers/config/schema.h"
#include "trainers/config/text_place.h"

namespace weft::config {
namespace {

namespace pb = google::protobuf;
using test::kTiny;

constexpr int64_t kVocab = 256;

// Fields that no option of the library holds: the run reads them in these words.
const std::map<std::string, std::string> kReadByTheRun = {
    {"name", "experiment.name()"},
    {"seed", "experiment.seed()"},
    {"data.tokenizer.bpe.file", "bpe().file()"},
    {"data.weights_only", "data().weights_only()"},
    {"data.tokenizer.gpt2.vocab", "gpt2().vocab()"},
    {"data.tokenizer.gpt2.merges", "gpt2().merges()"},
    {"data.train.path", "train(i).path()"},
    {"data.train.weight", "train(i).weight()"},
    {"data.train.field", "train(i).field()"},
    {"data.val.path", "d.val().path()"},
    {"data.val.fraction", "d.val().fraction()"},
    {"data.val.tokens", "d.val().tokens()"},
    {"data.val.field", "d.val().field()"},
    {"data.val.half", "d.val().half()"},
    {"data.document_mask", "d.document_mask()"},
    {"data.end_of_text", "d.end_of_text()"},
    {"data.end_of_text_at", "d.end_of_text_at()"},
    {"data.first_token", "d.first_token()"},
    {"data.keep_files", "d.keep_files()"},
    {"data.task.test_rows", "task().test_rows()"},
    {"data.task.test_from", "task().test_from()"},
    {"optim.clip_norm", "optim().clip_norm()"},
    {"optim.skip.loss_z", "skip().loss_z()"},
    {"optim.skip.grad_z", "skip().grad_z()"},
    {"optim.skip.window", "skip().window()"},
    {"optim.skip.max_in_a_row", "skip().max_in_a_row()"},
    {"train.device", "train().device()"},
    {"train.threads", "train().threads()"},
    {"train.overfit_one_batch", "train().overfit_one_batch()"},
    {"train.max_seconds", "train().max_seconds()"},
    {"train.memory_gib", "train().memory_gib()"},
    {"train.anomaly", "train().anomaly()"},
    {"eval.every", "eval().every()"},
    {"eval.tokens", "eval().tokens()"},
    {"log.every", "log().every()"},
    {"log.tensorboard", "log().tensorboard()"},
    {"log.samples_every", "log().samples_every()"},
    {"log.sample_prompt", "log.sample_prompt()"},
    {"log.sample_tokens", "log().sample_tokens()"},
    {"log.samples", "log().samples()"},
    {"log.sample_temperature", "log().sample_temperature()"},
    {"log.sample_top_p", "log().sample_top_p()"},
    {"log.diagnostics_every", "log().diagnostics_every()"},
    {"log.analysis_every", "log().analysis_every()"},
    {"log.trace_step", "log().trace_step()"},
    {"log.trace_steps", "log().trace_steps()"},
    {"checkpoint.every", "checkpoint().every()"},
    {"start.from", "start().from()"},
    {"checkpoint.keep_last", "checkpoint().keep_last()"},
    {"checkpoint.keep_every", "checkpoint().keep_every()"},
    {"checkpoint.keep_best", "checkpoint().keep_best()"},
};

// Fields whose only legal value is their default in all of these configs, which have one rank.
const std::set<std::string> kRefused = {"parallel.zero"};

// Other values of texts; those of numbers follow from their range.
const std::map<std::string, std::vector<std::string>> kTexts = {
    {"name", {"other"}},
    {"model.pattern", {"0 0", "1"}},
    {"model.mixer.preset", {"gqa", "mla"}},
    {"type", {"other", "missing"}},  // of all parts of a program's own
    {"key", {"other"}},
    {"value", {"other"}},
    {"model.residual.preset", {"delta", "full"}},
    {"data.tokenizer.bpe.file", {"other.json"}},
    {"data.tokenizer.gpt2.vocab", {"other.json"}},
    {"data.tokenizer.gpt2.merges", {"other.txt"}},
    {"data.train.path", {"other.txt"}},
    {"data.train.field", {"other"}},
    {"data.val.path", {"other.txt"}},
    {"data.val.field", {"other"}},
    {"optim.group.match", {"*.weight"}},
    {"model.adapter.match", {"layers.1.*"}},
    {"log.sample_prompt", {"other"}},
    {"start.from", {"other"}},
    {"start.frozen", {"other"}},
    {"start.trained", {"other"}},
};

// A config: the tiny one with overrides. The fields at and below `part` are set to other values.
struct Base {
  std::string name;
  std::vector<std::string> overrides = {};
  std::string part = {};
};

std::vector<Base> bases() {
  std::vector<Base> out = {{"tiny"}};
  auto add = [&](const std::string& part, const std::vector<std::string>& overrides) {
    out.push_back({overrides.back(), overrides, part});
  };
  for (const MixerRow& row : mixer_table())
    out.push_back({row.name, {"model.mixer=[{" + train::config_text(row) + "}]"}, "model.mixer[0]"});
  for (const ResidualRow& row : residual_table()) {
    const std::string text = train::config_text(MixerRow{.name = "residual." + row.name});
    out.push_back({row.name, {"model.residual={" + text + "}"}, "model.residual"});
  }
  const std::string custom = R"(custom{type:"probe",number:{key:"a",value:1},text:{key:"b",value:"c"}})";
  const std::string fields = custom.substr(std::string("custom").size());
  for (const char* place : {"model.norm", "model.ffn", "model.residual"}) add(place, {str(place, "={", custom, "}")});
  add("model.mixer[0]", {"model.mixer=[{" + custom + "}]"});
  for (const char* place : {"custom_heads", "custom_attention"})
    add("model.mixer[0]", {str("model.mixer=[{softmax{heads:4,", place, fields, "}}]")});
  add("model.mixer[1]", {"model.mixer=[{softmax{heads:4}},{softmax{heads:2}}]"});
  for (const char* position :
       {"rope{scaling{linear{factor:2}}}", "rope{scaling{llama3{}}}",
        "rope{scaling{yarn{factor:2,original_context:16,attention_factor:2}}}", "learned{}", "none{}"})
    add("model.position", {str("model.position={", position, "}")});
  add("model.norm", {"model.norm={layer{}}"});
  add("model.ffn", {"model.ffn={gelu{}}"});
  add("model.ffn", {"model.ffn={none{}}"});
  add("model.ffn", {"model.mixer=[{umoe{experts:4,active:2}}]", "model.ffn={umoe{active:2}}"});
  for (const char* schedule : {"constant{}", "linear{}", "cosine{}", "wsd{}", "inverse_sqrt{}"})
    add("optim.schedule", {str("optim.schedule={", schedule, "}")});
  for (const char* group : {"adamw{betas:[0.9,0.95]}", "lion{betas:[0.9,0.95]}", "sgd{}",
                            "schedule_free{betas:[0.9,0.95]}", "rank:2,muon{}"})
    add("optim.group[0]", {"optim.schedule={constant{}}", str("optim.group=[{", group, "}]")});
  add("optim.skip", {"optim.skip={}"});
  add("data.tokenizer", {"data.tokenizer={characters{}}"});
  add("model.adapter", {"model.adapter=[{match:\"layers.*\"}]"});
  add("data.tokenizer", {R"(data.tokenizer={gpt2{vocab:"v.json",merges:"m.txt"}})"});
  add("data.tokenizer", {R"(data.tokenizer={bpe{file:"t.json"}})"});
  add("data.tokenizer", {"model.vocab=256", "data.tokenizer={ids{}}"});
  add("data.val", {"data.val={path:\"v.txt\"}"});
  add("start", {"start={from:\"a\",frozen:\"b\",trained:\"c\",distill{temperature:2}}"});
  for (const char* task : {"mqar{}", "mqar{pairs:4,updates:1}", "copy{items:8}", "induction{}", "needle{}", "state{}"})
    add("data.task", {str("data={task{", task, "}}")});
  for (const char* layers : {"ratio:1", "layers:[1]", "first_middle_last:true"})
    add("model.placement", {"model.layers=8", "model.mixer=[{softmax{heads:4}},{softmax{heads:2}}]",
                            str("model.placement=[{mixer:1,", layers, "}]")});
  return out;
}

// What the makers of the program's own parts were given. They make nothing.
std::string given;
auto probe(const char* name) {
  return [name](const auto& args, auto...) {
    given += name;
    for (const auto& [key, number] : args.numbers) given += str(" ", key, "=", number);
    for (const auto& [key, text] : args.texts) given += str(" ", key, "=", text);
    return nullptr;
  };
}

Loaded load(const std::vector<std::string>& overrides) {
  Loaded out = read_string(kTiny, "tiny.txtpb", "/config", overrides);
  for (const char* name : {"probe", "other"}) {
    out.own.mixers.push_back({.name = name, .make = probe(name)});
    out.own.norms.push_back({.name = name, .make = probe(name)});
    out.own.ffns.push_back({.name = name, .make = probe(name)});
    out.own.residuals.push_back({.name = name, .make = probe(name)});
    out.own.head_mixtures.push_back({.name = name, .make = probe(name)});
    out.own.attentions.push_back({.name = name, .make = probe(name)});
  }
  resolve(out);
  return out;
}

std::string all_options(const Loaded& config) {
  given.clear();
  std::string options = train::test::dump_all(config, kVocab);
  return options + given;
}

struct Leaf {
  const FieldDescriptor* field = nullptr;
  std::string path;         // model.mixer[0].softmax.heads
  std::string schema_path;  // model.mixer.softmax.heads
  std::string value;        // empty: not set
};

void collect(const pb::Message& message, const std::string& path, const std::string& schema_path,
             std::vector<Leaf>& out) {
  const pb::Reflection& reflection = *message.GetReflection();
  for (int i = 0; i < message.GetDescriptor()->field_count(); ++i) {
    const FieldDescriptor& field = *message.GetDescriptor()->field(i);
    const std::string here = child_path(path, field.name()), schema = child_path(schema_path, field.name());
    const bool is_set = !field.is_repeated() && reflection.HasField(message, &field);
    const int count = field.is_repeated() ? reflection.FieldSize(message, &field) : is_set;
    for (int k = 0; k < count; ++k) {
      const std::string at = field.is_repeated() ? element_path(here, k) : here;
      if (field.message_type())
        collect(field.is_repeated() ? reflection.GetRepeatedMessage(message, &field, k)
                                    : reflection.GetMessage(message, &field),
                at, schema, out);
      else out.push_back({&field, at, schema, scalar_text(message, field, k)});
    }
    if (!field.is_repeated() && !is_set && !field.message_type() && !field.real_containing_oneof())
      out.push_back({&field, here, schema, ""});
  }
}

void collect_schema(const Descriptor& message, const std::string& path, std::set<std::string>& out) {
  for (int i = 0; i < message.field_count(); ++i) {
    const std::string here = child_path(path, message.field(i)->name());
    if (message.field(i)->message_type()) collect_schema(*message.field(i)->message_type(), here, out);
    else out.insert(here);
  }
}

std::vector<std::string> other_values(const Leaf& leaf) {
  std::vector<std::string> out;
  const Range range = facts(*leaf.field).range;
  auto add_number = [&](double value) {
    if (range.text.empty() || range.contains(value)) out.push_back(str(value));
  };
  switch (leaf.field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_BOOL: out = {"true", "false"}; break;
    case FieldDescriptor::CPPTYPE_ENUM: out = value_names(*leaf.field->enum_type()); break;
    case FieldDescriptor::CPPTYPE_INT64:
      for (int64_t value : {2, 1, 4, 3, 8, 0, 16, 32, 64, 320, 640}) add_number(static_cast<double>(value));
      break;
    case FieldDescriptor::CPPTYPE_DOUBLE:
      for (double value : {0.5, 0.25, 1.0, 2.0, 1.5, 0.125, 0.0, 64.0, -0.5}) add_number(value);
      break;
    case FieldDescriptor::CPPTYPE_STRING:
      for (const std::string& name : {leaf.schema_path, leaf.field->name()})
        if (auto found = kTexts.find(name); out.empty() && found != kTexts.end()) out = found->second;
      break;
    case FieldDescriptor::CPPTYPE_INT32:
    case FieldDescriptor::CPPTYPE_UINT32:
    case FieldDescriptor::CPPTYPE_UINT64:
    case FieldDescriptor::CPPTYPE_FLOAT:
    case FieldDescriptor::CPPTYPE_MESSAGE: ADD_FAILURE() << leaf.path << ": a type that the schema does not use";
  }
  std::erase(out, leaf.value);
  return out;
}

// visit(leaf, change, loaded, error) for every value of an enum, and of other fields until one is accepted; null: refused.
void for_each_change(const Base& base, auto visit) {
  std::vector<Leaf> leaves;
  collect(load(base.overrides).experiment, "", "", leaves);
  for (const Leaf& leaf : leaves) {
    if (!leaf.path.starts_with(base.part)) continue;
    if (leaf.field->name() == "preset" && !base.part.empty())
      continue;  // beside a row's own fields it has nothing left to set
    for (const std::string& value : other_values(leaf)) {
      std::vector<std::string> overrides = base.overrides;
      overrides.push_back(str(leaf.path, "=", value));
      try {
        const Loaded loaded = load(overrides);
        visit(leaf, overrides.back(), &loaded, "");
        if (leaf.field->cpp_type() != FieldDescriptor::CPPTYPE_ENUM) break;
      } catch (const ConfigError& error) {
        visit(leaf, overrides.back(), nullptr, str(error.problem(), "\n", error.fix()));
      }
    }
  }
}

// What happened to a field in all configs.
struct Seen {
  int changed = 0;
  std::vector<std::string> silent, refused;  // the configs and values
};

class EveryField : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    for (const Base& base : bases()) try_fields(base);
  }
  static void TearDownTestSuite() { seen.clear(); }

  static void try_fields(const Base& base) {
    const std::string options = all_options(load(base.overrides));
    for_each_change(base,
                    [&](const Leaf& leaf, const std::string& change, const Loaded* loaded, const std::string& error) {
                      Seen& field = seen[leaf.schema_path];
                      const std::string where = str(change, " in ", base.name);
                      if (!loaded) field.refused.push_back(str(where, ": ", error));
                      else if (all_options(*loaded) == options) field.silent.push_back(where);
                      else ++field.changed;
                    });
  }

  static inline std::map<std::string, Seen> seen;
};

TEST_F(EveryField, OfTheSchemaIsSetToAnotherValue) {
  std::set<std::string> schema;
  collect_schema(*Experiment::descriptor(), "", schema);
  for (const std::string& path : schema) {
    const Seen& field = seen[path];
    EXPECT_GT(field.changed + field.silent.size() + field.refused.size(), 0u)
        << path << ": no config of this test has it, or no other value is known for it";
  }
  EXPECT_GT(schema.size(), 250u);
}

TEST_F(EveryField, ChangesTheOptionsOrIsReadByTheRun) {
  int changed = 0;
  for (const auto& [path, field] : seen) {
    if (kReadByTheRun.contains(path) || kRefused.contains(path)) continue;
    changed += field.changed > 0;
    EXPECT_GT(field.changed, 0) << path << " never changed the options; refused: "
                                << (field.refused.empty() ? "never" : field.refused[0]);
    EXPECT_TRUE(field.silent.empty()) << field.silent[0] << " changes nothing";
  }
  RecordProperty("fields_that_change_options", changed);
}

TEST_F(EveryField, ThatTheRunReadsIsReadThere) {
  std::string sources;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(WEFT_TRAINERS)) {
    if (entry.path().extension() != ".cpp") continue;
    std::ifstream file(entry.path());
    std::stringstream text;
    text << file.rdbuf();
    sources += text.str();
  }
  for (const auto& [path, words] : kReadByTheRun) {
    EXPECT_EQ(seen[path].changed, 0) << path << " changes the options, so it does not belong into the table";
    EXPECT_FALSE(seen[path].silent.empty()) << path << " is never accepted";
    EXPECT_NE(sources.find(words), std::string::npos) << path << ": no source reads " << words;
  }
}

TEST_F(EveryField, ThatIsRefusedIsNamed) {
  for (const std::string& path : kRefused) {
    EXPECT_EQ(seen[path].changed + seen[path].silent.size(), 0u) << path << " is accepted";
    ASSERT_FALSE(seen[path].refused.empty()) << path;
    for (const std::string& text : seen[path].refused) EXPECT_NE(text.find(path + " is "), std::string::npos) << text;
  }
}

// `weft bench train` measures the quickstart's step without reading configs.
TEST(BenchedStep, OfTheQuickstartIsThatOfItsRecipe) {
  const Loaded recipe = config::load(WEFT_TRAINERS "/recipes/quickstart.txtpb", {});
  const bench::StepShape& shape = bench::kSmallShape;
  LanguageModelOptions options = bench::quickstart_options(shape);
  // The config writes out what 0 and an empty pattern mean.
  SoftmaxOptions softmax = *options.mixers[0].target<SoftmaxOptions>();
  softmax.kv_heads = softmax.heads, softmax.head_dim = shape.dim / shape.heads;
  options.mixers = {softmax}, options.pattern = {0};
  EXPECT_EQ(train::test::dump(options), train::test::dump(train::model_options(recipe, shape.vocab)));
  EXPECT_EQ(train::test::dump(bench::quickstart_groups()), train::test::dump(train::param_groups(recipe.experiment)));
  const train::StepSizes sizes = train::step_sizes(recipe.experiment);
  EXPECT_EQ(sizes.micro_batch, shape.batch);
  EXPECT_EQ(sizes.tokens_per_step, shape.batch * shape.tokens);
  EXPECT_EQ(train::compute_dtype(recipe.experiment), kF32);
}

// Arms of a oneof are choices as well: each makes other options.
TEST(EveryChoice, MakesOtherOptions) {
  std::map<std::string, std::map<std::string, std::string>> by_part;
  for (const Base& base : bases()) {
    if (base.part == "data.tokenizer" || base.part == "data.val" || base.part == "optim.skip") continue;  // of the run
    const Loaded loaded = load(base.overrides);
    auto [other, is_new] = by_part[base.part].emplace(all_options(loaded), base.name);
    EXPECT_TRUE(is_new) << base.name << " and " << other->second << " are the same options";
  }
}

// Texts of rows and presets are made from options: what such a text says must be those options again.
TEST(EveryOption, OfAMixerStandsInItsText) {
  int tried = 0;
  for (const Base& base : bases()) {
    if (base.part != "model.mixer[0]" || base.name.find("custom") != std::string::npos) continue;
    for_each_change(base, [&](const Leaf&, const std::string& change, const Loaded* loaded, const std::string&) {
      if (!loaded) return;
      const MixerMaker made = train::mixer_maker(loaded->experiment.model().mixer(0));
      const std::string text = train::text_of_message(train::mixer_message(options_of(MixerRow{.make = made})));
      const Loaded again = load({"model.mixer=[{" + text + "}]"});
      EXPECT_EQ(train::test::dump(train::mixer_maker(again.experiment.model().mixer(0))), train::test::dump(made))
          << change << " in " << base.name << ": " << text;
      ++tried;
    });
  }
  EXPECT_GT(tried, 500);
}

TEST(EveryOption, OfAResidualStreamStandsInItsText) {
  int tried = 0;
  for (const Base& base : bases()) {
    if (base.part != "model.residual") continue;
    for_each_change(base, [&](const Leaf&, const std::string& change, const Loaded* loaded, const std::string&) {
      if (!loaded) return;
      const Residual& residual = loaded->experiment.model().residual();
      if (!residual.has_attention() && !residual.has_delta()) return;
      const RoutedResidualOptions made = train::residual_options(residual);
      const std::string text = train::text_of_message(train::residual_message(&made));
      const Loaded again = load({"model.residual={" + text + "}"});
      EXPECT_EQ(train::test::dump(train::residual_options(again.experiment.model().residual())),
                train::test::dump(made))
          << change << " in " << base.name << ": " << text;
      ++tried;
    });
  }
  EXPECT_GT(tried, 50);
}

}  // namespace
}  // namespace weft::config
