// A trained softmax model as gated slot attention.
#include "weft/models/convert.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "tests/support/errors.h"
#include "weft/core/parallel.h"
#include "weft/training/training.h"

namespace weft {
namespace {

using test::error_of;

LanguageModelOptions softmax_model() {
  return {.vocab = 11,
          .dim = 16,
          .layers = 3,
          .context = 12,
          .mixers = {SoftmaxOptions{.heads = 4, .kv_heads = 2, .qk_norm = QkNorm::rms}, GlaOptions{.heads = 2}},
          .pattern = {0, 1, 0},
          .ffn = {.hidden = 16},
          .std = 0.1};
}

std::vector<float> value_of(LanguageModel& model, const std::string& name) {
  for (const NamedParam& p : model.params())
    if (p.name == name) return p.param->value().to_vector<float>();
  ADD_FAILURE() << name;
  return {};
}

TEST(GatedSlotsConversion, TakesEveryTensorThatHasAPlace) {
  LanguageModel trained(softmax_model(), Rng(1));
  auto [model, report] = to_gated_slots(trained, {.slots = 5}, Rng(2));
  for (const std::string& name : report.taken) EXPECT_EQ(value_of(*model, name), value_of(trained, name)) << name;
  const std::vector<std::string> repeated{"layers.0.mixer.k.weight", "layers.0.mixer.v.weight",
                                          "layers.2.mixer.k.weight", "layers.2.mixer.v.weight"},
      fresh{"layers.0.mixer.decay.weight", "layers.0.mixer.norm.weight", "layers.2.mixer.decay.weight",
            "layers.2.mixer.norm.weight"},
      left{"layers.0.mixer.k_norm.weight", "layers.0.mixer.q_norm.weight", "layers.2.mixer.k_norm.weight",
           "layers.2.mixer.q_norm.weight"};
  EXPECT_EQ(report.repeated, repeated);
  EXPECT_EQ(report.fresh, fresh);
  EXPECT_EQ(report.left, left);
  EXPECT_EQ(report.taken.size() + repeated.size() + fresh.size(), model->params().size());
  EXPECT_NE(to_string(report).find("4 left behind: layers.0.mixer.k_norm.weight, "), std::string::npos);
  // Head h has the rows of group h / 2; heads and groups are 4 wide.
  const std::vector<float> groups = value_of(trained, repeated[0]), heads = value_of(*model, repeated[0]);
  ASSERT_EQ(heads.size(), 2 * groups.size());
  for (size_t row = 0; row < 16; ++row)
    for (size_t c = 0; c < 16; ++c) EXPECT_EQ(heads[row * 16 + c], groups[(row / 8 * 4 + row % 4) * 16 + c]) << row;
}

TEST(GatedSlotsConversion, SaysWhatIsLostBesideTensors) {
  LanguageModelOptions o = softmax_model();
  o.mixers = {SoftmaxOptions{.heads = 4, .softcap = 30, .dropout = 0.1, .has_out_silu = true}, GlaOptions{.heads = 2},
              SoftmaxOptions{.heads = 4, .window = 3, .position = MixerPosition::none, .sink = {SinkKind::off_by_one}},
              SoftmaxOptions{.heads = 4, .position = MixerPosition::alibi, .weights = {.kind = WeightKind::sigmoid}},
              SoftmaxOptions{.heads = 4, .position = MixerPosition::none}};
  o.layers = 5, o.pattern = {0, 1, 2, 3, 4};
  LanguageModel rotated(o, Rng(1));
  const ConversionReport report = to_gated_slots(rotated, {.slots = 5}, Rng(2)).report;
  const std::vector<std::string> lost{"layers.0.mixer: rotation of queries and keys",
                                      "layers.0.mixer: soft cap at 30",
                                      "layers.0.mixer: dropout of weights",
                                      "layers.0.mixer: silu of heads",
                                      "layers.2.mixer: window of 3 tokens",
                                      "layers.2.mixer: sink off_by_one",
                                      "layers.3.mixer: ALiBi",
                                      "layers.3.mixer: weights other than softmax"};
  EXPECT_EQ(report.lost, lost);
  EXPECT_NE(to_string(report).find("8 lost, which had no tensors: layers.0.mixer: rotation of queries and keys, "),
            std::string::npos);
  o.position = PositionKind::none, o.mixers = {SoftmaxOptions{.heads = 4}}, o.pattern = {};
  LanguageModel bare(o, Rng(1));
  EXPECT_TRUE(to_gated_slots(bare, {.slots = 5}, Rng(2)).report.lost.empty());
}

TEST(GatedSlotsConversion, RunsAndTrains) {
  set_num_threads(1);
  LanguageModel trained(softmax_model(), Rng(1));
  auto model = std::move(to_gated_slots(trained, {.slots = 5, .layers = {2}}, Rng(2)).model);
  const Tensor ids = Tensor::from<int32_t>({1, 5, 2, 7, 3, 9, 1, 5, 2, 7, 3, 9}, {1, 12}),
               targets = Tensor::from<int32_t>({5, 2, 7, 3, 9, 1, 5, 2, 7, 3, 9, 1}, {1, 12});
  Training training(*model, {.groups = {{.algorithm = AdamWOptions{.lr = 1e-2}}}});
  double first = 0, last = 0;
  for (int step = 0; step < 40; ++step) {
    Tokens tokens(plain_tokens(1, 12), {.is_training = true});
    last = training.step(1, [&](const MicroBatch&) { return model->loss(ids, targets, tokens, 1.0 / 12).loss; }).loss;
    if (step == 0) first = last;
  }
  EXPECT_LT(last, first / 4);
}

TEST(GatedSlotsConversion, RefusesWhatItCannotConvert) {
  LanguageModelOptions o = softmax_model();
  LanguageModel trained(o, Rng(1));
  auto refuses = [](const LanguageModel& model, const GatedSlotsConversion& how,
                    std::initializer_list<std::string_view> parts) {
    return error_of([&] { to_gated_slots(model, how, Rng(2)); }, parts);
  };
  EXPECT_EQ(refuses(trained, {.layers = {1}}, {"to_gated_slots: layer 1 has no softmax attention", "leave it out"}),
            "");
  EXPECT_EQ(refuses(trained, {.layers = {3}}, {"to_gated_slots: layer 3 of 3", "from 0"}), "");
  o.mixers = {SoftmaxOptions{.heads = 2, .head_dim = 4}}, o.pattern = {};
  LanguageModel narrow(o, Rng(1));
  EXPECT_EQ(refuses(narrow, {}, {"to_gated_slots: layer 0 has 2 heads of 4 for dim 16"}), "");
  o.mixers = {GlaOptions{.heads = 2}};
  LanguageModel other(o, Rng(1));
  EXPECT_EQ(refuses(other, {}, {"to_gated_slots: no layer of the model has softmax attention"}), "");
}

}  // namespace
}  // namespace weft
