// Adapters in configs: layers that take none are refused when the config is read, and all others run.
#include <gtest/gtest.h>

#include "tests/support/errors.h"
#include "tests/support/random.h"
#include "trainers/config/translate.h"
#include "weft/core/parallel.h"
#include "weft/nn/mixers.h"

namespace weft {
namespace {

using test::error_of;

config::Loaded config_of(const std::string& model, const std::vector<std::string>& overrides = {}) {
  return config::read_string("model { " + model + R"( } data { tokenizer { bytes {} } train { path: "a.txt" }
val { fraction: 0.1 } } train { tokens: 640 })",
                             "adapters.txtpb", "/config", overrides);
}

LanguageModelOptions options_of(const config::Loaded& config) {
  LanguageModelOptions options = train::model_options(config, 256);
  options.fixed_text.resize(static_cast<size_t>(options.context));
  return options;
}

// A forward and two steps of decoding with adapters that are not 0.
std::string problem_of(const LanguageModelOptions& options) {
  try {
    NoGrad no_grad;
    LanguageModel model(options, Rng(1));
    for (const NamedParam& p : model.params())
      if (p.name.ends_with("adapter_up")) p.param->set_value(test::random_normal(p.param->value().shape(), p.name));
    Tokens tokens(plain_tokens(1, 5));
    model.logits(Tensor::zeros({1, 5}, kI32), tokens);
    std::shared_ptr<Cache> cache = make_cache(1, options.context);
    for (int64_t seen : {0, 3}) {
      Tokens decoded(plain_tokens(1, 3, seen), {.cache = cache});
      model.logits(Tensor::zeros({1, 3}, kI32), decoded);
    }
    return "";
  } catch (const Error& error) { return error.problem(); }
}

std::vector<std::string> linear_layers(const LanguageModelOptions& options) {
  LanguageModel model(options, Rng(1));
  std::vector<std::string> names;
  for (const NamedModule& part : model.modules())
    if (dynamic_cast<Linear*>(part.module)) names.push_back(part.name);
  return names;
}

// Of every row of the table of mixers, every linear layer by itself.
TEST(ConfiguredAdapters, EveryProjectionTakesOneOrIsRefusedWhenTheConfigIsRead) {
  set_num_threads(1);
  int64_t taken = 0, refused = 0;
  for (const MixerRow& row : mixer_table()) {
    const std::string model = "dim: 16 layers: 2 context: 16 mixer { preset: \"" + std::string(row.name) + "\" }";
    config::Loaded plain = config_of(model);
    try {
      config::resolve(plain);
    } catch (const Error& error) {
      ADD_FAILURE() << row.name << ": " << error.what();
      continue;
    }
    const bool runs = problem_of(options_of(plain)).empty();
    for (const std::string& name : linear_layers(options_of(plain))) {
      if (name.starts_with("layers.1.")) continue;
      config::Loaded adapted = config_of(model, {"model.adapter=[{match:\"" + name + "\",rank:2}]"});
      std::string said;
      try {
        config::resolve(adapted);
      } catch (const Error& error) { said = error.what(); }
      if (said.empty()) {
        ++taken;
        EXPECT_EQ(runs ? problem_of(options_of(adapted)) : "", "") << row.name << " " << name;
        continue;
      }
      ++refused;
      for (const char* part : {"model.adapter[0].match", "is read without it", "leave the layer out"})
        EXPECT_NE(said.find(part), std::string::npos) << row.name << " " << name << ": " << said;
      EXPECT_NE(said.find("\": " + name + ": "), std::string::npos) << said;
    }
  }
  EXPECT_GT(taken, 4 * refused);
  EXPECT_GT(refused, 5);
}

TEST(ConfiguredAdapters, AreRefusedByLayerAndLine) {
  const std::string base = "dim: 16 layers: 2 context: 16 ";
  const std::string delta = base + "mixer { delta { heads: 2 decay: head } }",
                    mla = base + "mixer { mla { heads: 2 } }";
  auto refusal = [&](const std::string& model, const std::string& adapters, std::vector<std::string_view> parts) {
    config::Loaded config = config_of(model, {"model.adapter=" + adapters});
    return error_of([&] { config::resolve(config); }, std::span<const std::string_view>(parts));
  };
  EXPECT_EQ(refusal(delta, "[{match:\"layers.*.mixer.q\"},{match:\"layers.*.mixer.strength\"}]",
                    {"model.adapter[1].match", "layers.0.mixer.strength", "leave the layer out"}),
            "");
  EXPECT_EQ(refusal(delta, "[{match:\"layers.*\"}]",
                    {"model.adapter[0].match", "is \"layers.*\": layers.0.mixer.strength: "}),
            "");
  // Latent attention multiplies by these two in decoding alone.
  EXPECT_EQ(refusal(mla, "[{match:\"*.key_up\"}]", {"model.adapter[0].match", "leave the layer out"}), "");
  EXPECT_EQ(refusal(mla, "[{match:\"*.value_up\"}]", {"model.adapter[0].match", "leave the layer out"}), "");
  EXPECT_EQ(refusal(base + "mixer { softmax { heads: 2 } }", "[{match:\"head\"}]", {"model.adapter[0]", "head"}), "");
  EXPECT_EQ(refusal(base + "mixer { softmax { heads: 2 } }", "[{match:\"layers.2.*\"}]",
                    {"model.adapter[0].match", "no linear layer matches 'layers.2.*'", "layers.0.mixer.q"}),
            "");
  for (const char* taken : {"[{match:\"*.query\"},{match:\"*.kv_down\"},{match:\"*.out\"}]", "[{match:\"*.ffn.*\"}]"}) {
    config::Loaded config = config_of(mla, {std::string("model.adapter=") + taken});
    EXPECT_NO_THROW(config::resolve(config)) << taken;
  }
}

}  // namespace
}  // namespace weft
