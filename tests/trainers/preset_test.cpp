// The tables of mixers and residual streams as words of the config: texts of the docs, presets, what they refuse.
#include <gtest/gtest.h>

#include <fstream>

#include "tests/trainers/config_text.h"
#include "trainers/config/options_text.h"
#include "trainers/config/translate.h"
#include "trainers/conformance/subject.h"

namespace weft::config {
namespace {

using test::error_of;
using test::expect_parts;
using test::load_string;

// A config around what stands in `model`.
Loaded model_of(const std::string& model, const std::string& sizes = "dim: 16 layers: 4 context: 16") {
  return load_string(str("model { ", sizes, " ", model,
                         " }\ndata { train { path: \"text.txt\" } val { fraction: 0.1 } }\ntrain { tokens: 64000 }\n"));
}

struct DocumentedRow {
  std::string name, config;
};

// The first and third cell of every row of the table.
std::vector<DocumentedRow> documented_rows() {
  std::vector<DocumentedRow> rows;
  std::ifstream file(WEFT_DOCS "/mixers.md");
  auto cell = [](const std::string& line, int index) {
    size_t at = 0;
    for (int i = 0; i <= index; ++i) at = line.find(" | ", at) + 3;
    return line.substr(at + 1, line.find("` |", at) - at - 1);
  };
  for (std::string line; std::getline(file, line);)
    if (line.starts_with("| `")) rows.push_back({line.substr(3, line.find('`', 3) - 3), cell(line, 1)});
  return rows;
}

// Names, shapes and values of the parameters, and the output of one forward with documents of the suite's sizes.
void expect_same_mixer(const MixerRow& a, const MixerRow& b) {
  conformance::Subject in_table(a), in_text(b);
  std::unique_ptr<weft::Mixer> x = in_table.make(kF32), y = in_text.make(kF32);
  auto p = x->params(), q = y->params();
  ASSERT_EQ(p.size(), q.size());
  for (size_t i = 0; i < p.size(); ++i) {
    EXPECT_EQ(p[i].name, q[i].name);
    EXPECT_EQ(p[i].param->value().shape(), q[i].param->value().shape());
    EXPECT_EQ(conformance::numbers_of(p[i].param->value()), conformance::numbers_of(q[i].param->value()));
  }
  Tensor in = conformance::normal_input({2, 11, 16}, kF32);
  for (bool is_training : {false, true}) {
    auto run = [&](const conformance::Subject& s, weft::Mixer& m) {
      return conformance::numbers_of(
          s.run(m, in, plain_tokens(2, 11), {.is_training = is_training, .rng = Rng(3)}).value());
    };
    EXPECT_EQ(run(in_table, *x), run(in_text, *y));
  }
}

TEST(Presets, TextsOfTheDocsMakeTheMixersOfTheTable) {
  const std::string residual = "residual.";
  std::vector<DocumentedRow> documented = documented_rows();
  EXPECT_EQ(documented.size(), mixer_table().size() + residual_table().size());
  for (const DocumentedRow& row : documented) {
    SCOPED_TRACE(row.name + ": " + row.config);
    if (!row.name.starts_with(residual)) {
      MixerRow made = mixer_row(row.name);
      EXPECT_EQ(row.config, train::config_text(made));
      made.make = train::mixer_maker(model_of("mixer { " + row.config + " }").experiment.model().mixer(0));
      expect_same_mixer(mixer_row(row.name), made);
      continue;
    }
    for (const ResidualRow& known : residual_table()) {
      if (residual + known.name != row.name) continue;
      ResidualRow made = known;
      config::Residual text =
          model_of("mixer { softmax { heads: 2 } } residual { " + row.config + " }").experiment.model().residual();
      if (text.has_standard()) made.make = StandardResidualOptions{};
      else made.make = train::residual_options(text);
      expect_same_mixer(conformance::residual_row(known), conformance::residual_row(made));
    }
  }
}

// The resolved config holds the fields and no preset, and reads back as itself.
TEST(Presets, EveryRowIsOneAtTheSizesOfTheModel) {
  for (const char* sizes : {"dim: 128 layers: 4 context: 64", "dim: 64 layers: 2 context: 32"}) {
    for (const MixerRow& row : mixer_table()) {
      SCOPED_TRACE(row.name);
      Loaded loaded = model_of(str("mixer { preset: \"", row.name, "\" }"), sizes);
      Mixer mixer = loaded.experiment.model().mixer(0);
      EXPECT_FALSE(mixer.has_preset());
      EXPECT_EQ(mixer.kind_case(), train::mixer_message(options_of(row)).kind_case());
      EXPECT_EQ(to_text(load_string(to_text(loaded.experiment)).experiment), to_text(loaded.experiment));
      auto made = train::mixer_maker(mixer)(
          {.dim = loaded.experiment.model().dim(), .context = loaded.experiment.model().context(), .layers = 4},
          Rng(1));
      EXPECT_GT(made->num_params(), 0);
    }
    for (const ResidualRow& row : residual_table()) {
      SCOPED_TRACE(row.name);
      Loaded loaded = model_of(str("mixer { preset: \"mha\" } residual { preset: \"", row.name, "\" }"), sizes);
      EXPECT_FALSE(loaded.experiment.model().residual().has_preset());
      EXPECT_TRUE(train::model_options(loaded, 256).residual);
    }
  }
}

TEST(Presets, HeadsAre64WideAndOptionsThoseOfTheRow) {
  Mixer gate =
      model_of("mixer { preset: \"gate_out_silu\" }", "dim: 768 layers: 2 context: 256").experiment.model().mixer(0);
  EXPECT_EQ(gate.softmax().heads(), 12);
  EXPECT_EQ(gate.softmax().kv_heads(), 12);
  EXPECT_EQ(gate.softmax().head_dim(), 64);
  ASSERT_EQ(gate.softmax().gate_size(), 1);
  EXPECT_EQ(gate.softmax().gate(0).activation(), GateActivation::silu);
  Model model =
      model_of(
          "mixer { preset: \"gqa\" } mixer { preset: \"mqa\" } mixer { preset: \"window\" } mixer { preset: \"moh\" }",
          "dim: 768 layers: 4 context: 256")
          .experiment.model();
  EXPECT_EQ(model.mixer(0).softmax().kv_heads(), 6);
  EXPECT_EQ(model.mixer(1).softmax().kv_heads(), 1);
  EXPECT_EQ(model.mixer(2).softmax().window(), 64);
  EXPECT_EQ(model.mixer(3).softmax().head_mixture().shared(), 6);
  EXPECT_EQ(model.mixer(3).softmax().head_mixture().active(), 3);
}

// The table's are small; none at all is a choice of the row.
TEST(Presets, ConvolutionsSpanWhatTheirOptionSays) {
  Model model =
      model_of(
          "mixer { preset: \"delta_net_negative\" } mixer { preset: \"mamba2_groups\" } mixer { preset: \"kda_safe\" }",
          "dim: 768 layers: 3 context: 256")
          .experiment.model();
  EXPECT_EQ(model.mixer(0).delta().kernel(), 4);
  EXPECT_EQ(model.mixer(1).mamba2().kernel(), 4);
  EXPECT_TRUE(model.mixer(2).delta().has_kernel());
  EXPECT_EQ(model.mixer(2).delta().kernel(), 0);
  Model optional =
      model_of("mixer { preset: \"gla_conv\" } mixer { preset: \"lightnet_conv\" } mixer { preset: \"gla\" }",
               "dim: 768 layers: 3 context: 256")
          .experiment.model();
  EXPECT_EQ(optional.mixer(0).gla().kernel(), 4) << "off by default, and the row's";
  EXPECT_EQ(optional.mixer(1).additive_slots().kernel(), 4);
  EXPECT_EQ(optional.mixer(2).gla().kernel(), 0);
}

TEST(Presets, SharedKeysAndBoundsOfRecurrencesAreTheRows) {
  Model model =
      model_of("mixer { preset: \"gsa_grouped\" } mixer { preset: \"gsa\" } mixer { preset: \"gla_clamped\" }",
               "dim: 768 layers: 3 context: 256")
          .experiment.model();
  EXPECT_EQ(model.mixer(0).gated_slots().heads(), 12);
  EXPECT_EQ(model.mixer(0).gated_slots().kv_heads(), 6);
  EXPECT_FALSE(model.mixer(1).gated_slots().kv_heads() > 0 && model.mixer(1).gated_slots().kv_heads() < 12);
  EXPECT_EQ(model.mixer(2).gla().clamp_min(), -0.05);
}

TEST(Presets, FieldsOfTheConfigWin) {
  const std::string sizes = "dim: 768 layers: 2 context: 256";
  Softmax softmax =
      model_of("mixer { preset: \"gate_out\" softmax { heads: 6 window: 32 gate { position: values } } }", sizes)
          .experiment.model()
          .mixer(0)
          .softmax();
  EXPECT_EQ(softmax.heads(), 6);
  EXPECT_EQ(softmax.window(), 32);
  ASSERT_EQ(softmax.gate_size(), 1) << "a list is the config's or the preset's";
  EXPECT_EQ(softmax.gate(0).position(), GatePosition::values);
  Model model =
      model_of(
          "mixer { preset: \"moh\" softmax { heads: 16 } } residual { preset: \"delta_block\" delta { blocks: 2 } }",
          sizes)
          .experiment.model();
  EXPECT_EQ(model.mixer(0).softmax().head_mixture().shared(), 8) << "in proportion to the config's heads";
  EXPECT_EQ(model.residual().delta().blocks(), 2);
}

TEST(Presets, SayWhereTheirValuesCameFrom) {
  Loaded loaded = load_string(test::kTiny, {"model.mixer={preset:\"gate_out\"}"});
  expect_parts(explain("model.mixer.softmax.heads", &loaded),
               {"model.mixer[0].softmax.heads = 2  (model.mixer={preset:", "(preset gate_out)"});
  expect_parts(explain("model.mixer.preset", &loaded), {"model.mixer[0].preset = gate_out", "replaced by its fields"});
  expect_parts(explain("model.mixer.preset", nullptr), {"presets:", "  gate_out_silu       mha * silu(x W)"});
  expect_parts(explain("model.residual.preset", nullptr), {"  delta_block         h = p + sum a_n b_n"});
}

TEST(Presets, RefuseWhatIsNoRow) {
  struct Row {
    std::vector<std::string> overrides, parts;
  };
  for (const Row& row : std::vector<Row>{
           {{"model.mixer={preset:\"gate_ou\"}"}, {"model.mixer[0].preset is \"gate_ou\"", "Did you mean 'gate_out'?"}},
           {{"model.mixer={preset:\"gate_out\" mla{heads:4}}"},
            {"a row of softmax, beside mla", "leave one of the two out"}},
           {{"model.residual={preset:\"delt\"}"}, {"model.residual.preset is \"delt\"", "Did you mean 'delta'?"}},
           {{"model.mixer={preset:\"moh\"}", "model.dim=6"},
            {"model.mixer[0].preset", "no number of heads", "Set heads"}},
           {{"model.mixer={preset:\"mha\"}", "model.dim="}, {"model.dim is missing"}}})
    expect_parts(error_of(test::kTiny, row.overrides), row.parts);
}

}  // namespace
}  // namespace weft::config
