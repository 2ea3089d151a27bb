// Low-rank adapters of linear layers: what they add, what they begin as, their gradients beside frozen weights, which layers have none.
#include <gtest/gtest.h>

#include "tests/support/errors.h"
#include "tests/support/random.h"
#include "weft/autograd/gradient_check.h"
#include "weft/models/language_model.h"

namespace weft {
namespace {

using test::error_of;
using test::random_normal;

LanguageModelOptions tiny(FfnKind ffn) {
  return {.vocab = 11,
          .dim = 16,
          .layers = 2,
          .context = 12,
          .mixers = {SoftmaxOptions{.heads = 4, .kv_heads = 2}},
          .ffn = {.kind = ffn, .hidden = 24, .has_bias = true}};
}

Tensor ids() {
  Tensor t = Tensor::empty({2, 6}, kI32, Device::cpu());
  for (int64_t i = 0; i < 12; ++i) t.mutable_data<int32_t>()[i] = static_cast<int32_t>(i * 7 % 11);
  return t;
}

std::vector<float> logits(LanguageModel& model) {
  Tokens tokens(plain_tokens(2, 6));
  return model.logits(ids(), tokens).to_vector<float>();
}

TEST(Adapters, AddTheProductOfTheirMatrices) {
  Linear linear(5, 3, Rng(1), {.has_bias = true, .std = 0.5});
  Tensor x = random_normal({4, 5}, "x");
  const std::vector<float> before = linear(x).value().to_vector<float>();
  linear.add_adapter(2, 1.5, Rng(2));
  EXPECT_EQ(linear(x).value().to_vector<float>(), before) << "it begins at 0";
  const Tensor up = random_normal({3, 2}, "up");
  std::vector<float> down;
  for (const NamedParam& p : linear.params()) {
    if (p.name == "adapter_up") p.param->set_value(up);
    if (p.name == "adapter_down") down = p.param->value().to_vector<float>();
  }
  const std::vector<float> after = linear(x).value().to_vector<float>();
  for (int64_t r = 0; r < 4; ++r)
    for (int64_t o = 0; o < 3; ++o) {
      double sum = 0;
      for (int64_t k = 0; k < 2; ++k)
        for (int64_t i = 0; i < 5; ++i)
          sum += 1.5 * static_cast<double>(up.data<float>()[o * 2 + k]) *
                 static_cast<double>(down[static_cast<size_t>(k * 5 + i)]) *
                 static_cast<double>(x.data<float>()[r * 5 + i]);
      const auto at = static_cast<size_t>(r * 3 + o);
      EXPECT_NEAR(static_cast<double>(after[at] - before[at]), sum, 1e-5);
    }
  EXPECT_EQ(error_of([&] { linear.add_adapter(2, 1, Rng(3)); }, {"beside another"}), "");
  EXPECT_EQ(error_of([&] { linear.weight(); }, {"adapter", "leave the layer out"}), "");
}

TEST(Adapters, LeaveTheModelAsItIsAtFirstAndHaveTheRightGradients) {
  for (FfnKind ffn : {FfnKind::swiglu, FfnKind::gelu}) {
    LanguageModel plain(tiny(ffn), Rng(1));
    LanguageModelOptions options = tiny(ffn);
    options.adapters = {{.match = "layers.*.mixer.q", .rank = 3, .alpha = 6}, {.match = "layers.*", .rank = 2}};
    LanguageModel model(options, Rng(1));
    const std::vector<float> a = logits(plain), b = logits(model);
    for (size_t i = 0; i < a.size(); ++i) EXPECT_NEAR(a[i], b[i], 1e-6) << i;
    model.set_frozen("*.weight");
    model.set_compute(kF64);
    std::vector<Var*> variables;
    GradientCheckOptions check{.max_elements = 4};
    for (const NamedParam& p : model.params()) {
      const bool is_adapter = p.name.find("adapter_") != std::string::npos;
      EXPECT_EQ(p.param->is_frozen(), p.name.ends_with(".weight")) << p.name;
      const int64_t rank = p.name.find("mixer.q.") != std::string::npos ? 3 : 2;
      EXPECT_TRUE(!p.name.ends_with("adapter_up") || p.param->value().size(1) == rank) << p.name;
      if (!is_adapter) continue;
      p.param->set_value(random_normal(p.param->value().shape(), p.name, kF64));
      variables.push_back(&p.param->var());
      check.names.push_back(p.name);
    }
    EXPECT_EQ(variables.size(), ffn == FfnKind::swiglu ? 28u : 24u);
    auto f = [&](std::span<const Var>) {
      Tokens tokens(plain_tokens(2, 6));
      return model.loss(ids(), ids(), tokens, 0.1).loss;
    };
    const GradientCheck result = check_gradients(f, {}, variables, check);
    EXPECT_TRUE(result.passed) << result.report;
  }
}

TEST(Adapters, OfLayersThatThereAreNotAreRefused) {
  LanguageModelOptions options = tiny(FfnKind::swiglu);
  options.adapters = {{.match = "layers.7.*"}};
  EXPECT_EQ(error_of([&] { LanguageModel model(options, Rng(1)); }, {"no linear layer matches 'layers.7.*'"}), "");
  // The output head's matrix is read by the loss itself.
  options.adapters = {{.match = "head"}};
  options.has_tied_embedding = false;
  LanguageModel model(options, Rng(1));
  EXPECT_EQ(error_of([&] { logits(model); }, {"adapter", "leave the layer out"}), "");
}

}  // namespace
}  // namespace weft
