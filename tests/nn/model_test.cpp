// Modules and the language model: names, gradients, causality, decoding, recompute, bf16, errors.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/nn/model_support.h"
#include "tests/support/difference.h"
#include "tests/support/errors.h"
#include "tests/support/random.h"
#include "weft/autograd/gradient_check.h"
#include "weft/autograd/recompute.h"
#include "weft/models/language_model.h"
#include "weft/ops/attention/plans.h"

namespace weft {
namespace {

using test::error_of;
using test::max_difference;

Tensor contiguous_ids(const Tensor& all, int64_t begin, int64_t end) {
  auto values = all.slice(1, begin, end).to_vector<int32_t>();
  return Tensor::from(std::span<const int32_t>(values), {all.size(0), end - begin});
}

TEST(LanguageModel, NamesItsParametersByPath) {
  LanguageModel model(test::tiny_model(), Rng(1));
  std::vector<std::string> names;
  for (const NamedParam& p : model.params()) names.push_back(p.name);
  EXPECT_EQ(names.front(), "embedding.weight");
  EXPECT_EQ(names.back(), "norm.weight");
  EXPECT_NE(std::find(names.begin(), names.end(), "layers.1.mixer.q.weight"), names.end());
  EXPECT_NE(std::find(names.begin(), names.end(), "layers.0.mixer.k_norm.weight"), names.end());
  EXPECT_NE(std::find(names.begin(), names.end(), "layers.0.ffn.down.weight"), names.end());
}

TEST(LanguageModel, APartThatItsMakerDoesNotReturnIsAnErrorWithItsName) {
  const auto nothing = [](auto&&...) { return nullptr; };
  auto error = [](auto change, const std::string& name) {
    LanguageModelOptions o{.vocab = 11, .dim = 8, .layers = 2, .context = 8, .mixers = {SoftmaxOptions{.heads = 2}}};
    change(o);
    return error_of([&] { LanguageModel(o, Rng(1)); }, {name, "its maker returned nothing", "return a part"});
  };
  EXPECT_EQ(error([&](auto& o) { o.mixers = {nothing}; }, "mixer of layer 0"), "");
  EXPECT_EQ(error([&](auto& o) { o.residual = nothing; }, "residual stream"), "");
  EXPECT_EQ(error([&](auto& o) { o.own_ffn = nothing; }, "feed-forward network"), "");
  EXPECT_EQ(error([&](auto& o) { o.own_norm = nothing; }, "norm"), "");
}

TEST(LanguageModel, CountsParametersAndFlops) {
  LanguageModelOptions options{.vocab = 100,
                               .dim = 64,
                               .layers = 3,
                               .context = 32,
                               .mixers = {SoftmaxOptions{.heads = 4}},
                               .ffn = {.kind = FfnKind::gelu}};
  LanguageModel model(options, Rng(1));
  int64_t expected = 3 * 12 * 64 * 64 + 100 * 64;
  EXPECT_EQ(model.num_matmul_params(), expected);
  EXPECT_NEAR(model.flops_per_token(), 6.0 * static_cast<double>(expected) + 6.0 * 3 * 64 * 33, 1);
}

TEST(LanguageModel, CountsWhatATokenUses) {
  constexpr int64_t D = 64, K = 16;
  LanguageModelOptions options{.vocab = 100,
                               .dim = D,
                               .layers = 2,
                               .context = 32,
                               .mixers = {SoftmaxOptions{.heads = 4, .head_dim = K}},
                               .ffn = {.kind = FfnKind::gelu}};
  const auto idle = [&] {
    const LanguageModel model(options, Rng(1));
    return model.num_params() - model.num_active_params();
  };
  EXPECT_EQ(idle(), 0);
  options.mixers = {SoftmaxOptions{.heads = 4, .head_dim = K, .head_mixture = {.active = 1, .shared = 1}}};
  EXPECT_EQ(idle(), 2 * 2 * 2 * K * D) << "queries and outputs of two heads of four, in two layers";
  options.mixers = {MoaOptions{.experts = 4, .active = 1, .head_dim = K}};
  EXPECT_EQ(idle(), 2 * 3 * 2 * K * D);
  UmoeOptions umoe{.experts = 6, .active = 1, .head_dim = K, .hidden = 32, .query_rank = 4};
  options.mixers = {umoe};
  EXPECT_EQ(idle(), 2 * 5 * (4 * (D + K) + 2 * D * 32));
  options.ffn = {.kind = FfnKind::umoe, .active = 2};
  EXPECT_EQ(idle(), 2 * (5 * (4 * (D + K) + 2 * D * 32) - 2 * 2 * D * 32)) << "the network uses two more";
  const double flops = LanguageModel(options, Rng(1)).flops_per_token();
  options.ffn.active = 3;
  EXPECT_EQ(LanguageModel(options, Rng(1)).flops_per_token() - flops, 2 * 6 * 2 * D * 32) << "one more in each layer";
}

TEST(LanguageModel, GradientsOfEveryParameterAreRight) {
  LanguageModel model(test::tiny_model(), Rng(3));
  model.set_compute(kF64);
  std::vector<Var*> variables;
  GradientCheckOptions options{.max_elements = 6};
  for (const NamedParam& p : model.params()) {
    variables.push_back(&p.param->var());
    options.names.push_back(p.name);
  }
  Tensor input = test::tiny_ids(2, 5), targets = test::tiny_ids(2, 5, 2);
  targets.mutable_data<int32_t>()[3] = -1;
  auto f = [&](std::span<const Var>) {
    Tokens tokens(plain_tokens(2, 5));
    return model.loss(input, targets, tokens, 0.1).loss;
  };
  GradientCheck result = check_gradients(f, {}, variables, options);
  EXPECT_TRUE(result.passed) << result.report;
  EXPECT_GT(result.num_checked, 100);
}

TEST(LanguageModel, TheFutureChangesNothing) {
  for (PositionKind position : {PositionKind::rotary, PositionKind::learned, PositionKind::none}) {
    LanguageModel model(test::tiny_model(position), Rng(1));
    Tensor a = test::tiny_ids(1, 9), b = a;
    b = test::tiny_ids(1, 9, 77);
    for (int64_t t = 0; t < 6; ++t) b.mutable_data<int32_t>()[t] = a.data<int32_t>()[t];
    Tokens first(plain_tokens(1, 9)), second(plain_tokens(1, 9));
    Tensor x = model.logits(a, first), y = model.logits(b, second);
    EXPECT_EQ(x.slice(1, 0, 6).to_vector<float>(), y.slice(1, 0, 6).to_vector<float>());
    EXPECT_GT(max_difference(x.slice(1, 6, 9), y.slice(1, 6, 9)), 1e-4);
  }
}

TEST(LanguageModel, DecodingGivesTheParallelLogits) {
  LanguageModelOptions options = test::tiny_model();
  options.mixers.push_back(SoftmaxOptions{.heads = 2, .window = 3, .softcap = 5});
  LanguageModel model(options, Rng(1));
  Tensor all = test::tiny_ids(2, 10);
  Tokens parallel(plain_tokens(2, 10));
  Tensor expected = model.logits(all, parallel);
  auto cache = make_cache(2, 10);
  for (int64_t begin = 0, count = 4; begin < 10; begin += count, count = 1) {
    Tokens tokens(plain_tokens(2, count, begin), {.cache = cache});
    Tensor part = contiguous_ids(all, begin, begin + count);
    EXPECT_LT(max_difference(model.logits(part, tokens), expected.slice(1, begin, begin + count)), 1e-5);
  }
  EXPECT_EQ(
      error_of([&] { Tokens tokens(plain_tokens(2, 1, 10), {.cache = cache}); }, {"10 tokens are cached and 1 come"}),
      "");
}

// The sequence runs through the same layers, so it has gradients too, and decoding reads it at the token's own position.
TEST(LanguageModel, FixedSequencesRunBesideTheBatch) {
  for (DeconstructedKind kind : {DeconstructedKind::random_embedding, DeconstructedKind::fixed_text}) {
    LanguageModelOptions options = test::tiny_model();
    options.mixers.push_back(DeconstructedOptions{kind, 2});
    options.layers = 4;
    options.fixed_text = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0};
    Tensor all = test::tiny_ids(2, 10);
    std::map<std::string, std::vector<float>> expected;
    for (Recompute recompute : {Recompute::none, Recompute::mixers, Recompute::blocks}) {
      options.recompute = recompute;
      LanguageModel model(options, Rng(1));
      Tokens tokens(plain_tokens(2, 10), {.is_training = true, .rng = Rng(9)});
      backward(model.loss(all, all, tokens, 0.05).loss);
      for (const NamedParam& p : model.params()) {
        auto grad = p.param->grad().to_vector<float>();
        if (recompute == Recompute::none) expected[p.name] = grad;
        else EXPECT_EQ(grad, expected[p.name]) << p.name;
      }
    }
    LanguageModel model(options, Rng(1));
    EXPECT_EQ(model.buffers().size(), 1u);
    Tokens parallel(plain_tokens(2, 10));
    Tensor logits = model.logits(all, parallel);
    auto cache = make_cache(2, 10);
    for (int64_t begin = 0, count = 4; begin < 10; begin += count, count = 1) {
      Tokens tokens(plain_tokens(2, count, begin), {.cache = cache});
      Tensor part = contiguous_ids(all, begin, begin + count);
      EXPECT_LT(max_difference(model.logits(part, tokens), logits.slice(1, begin, begin + count)), 1e-5);
    }
  }
  LanguageModelOptions short_text = test::tiny_model();
  short_text.mixers = {DeconstructedOptions{DeconstructedKind::fixed_text, 2}};
  EXPECT_EQ(error_of([&] { LanguageModel(short_text, Rng(1)); },
                     {"a fixed text of 0 ids for a context of 12", "LanguageModelOptions::fixed_text"}),
            "");
}

// Of a batch that is the fixed text itself, each layer reads what plain attention reads.
TEST(LanguageModel, FixedSequencesHaveThePositionsOfTheBatch) {
  for (PositionKind position : {PositionKind::learned, PositionKind::none, PositionKind::rotary}) {
    LanguageModelOptions options = test::tiny_model(position);
    options.std = 0.3;
    options.mixers = {DeconstructedOptions{DeconstructedKind::fixed_text, 2}};
    options.fixed_text = {7, 1, 2, 3, 9, 5, 6, 0, 8, 4, 10, 0};
    LanguageModel fixed(options, Rng(1));
    options.mixers = {SoftmaxOptions{.heads = 2}};
    LanguageModel plain(options, Rng(1));
    Tensor text = Tensor::from(std::span<const int32_t>(options.fixed_text), {1, 12});
    Tokens one(plain_tokens(1, 12)), two(plain_tokens(1, 12));
    EXPECT_LT(max_difference(fixed.logits(text, one), plain.logits(text, two)), 1e-5);
  }
  // A random one: what the first layer shares is the norm of the sequence at its positions.
  LanguageModelOptions options = test::tiny_model(PositionKind::learned);
  options.mixers = {DeconstructedOptions{DeconstructedKind::random_embedding, 2}};
  LanguageModel model(options, Rng(1));
  Tokens tokens(plain_tokens(1, 3));
  model.hidden(test::tiny_ids(1, 3), tokens);
  Var sum = model.buffers()[0].buffer->value();
  for (const NamedParam& p : model.params())
    if (p.name == "positions.weight") sum = sum + Var(*p.param);
  Var expected = unsqueeze(rms_norm(sum, Tensor::full({16}, 1), options.norm.eps), 0);
  EXPECT_LT(max_difference(tokens.shared(fixed_sequence_name(0)).value(), expected.value()), 1e-6);
}

TEST(LanguageModel, FixedSequencesRunThroughLayersThatReadTheEmbedding) {
  LanguageModelOptions options = test::tiny_model(PositionKind::learned);
  options.mixers = {DeconstructedOptions{DeconstructedKind::static_embedding, 2},
                    DeconstructedOptions{DeconstructedKind::random_embedding, 2}};
  LanguageModel model(options, Rng(1));
  Tokens tokens(plain_tokens(1, 5));
  EXPECT_EQ(model.hidden(test::tiny_ids(1, 5), tokens).shape(), Shape({1, 5, 16}));
}

TEST(LanguageModel, AMixerOfAFixedSequenceIsRefusedWithoutOne) {
  const auto mixer = DeconstructedOptions{DeconstructedKind::random_embedding, 2}({.dim = 8, .context = 4}, Rng(1));
  Tokens tokens(plain_tokens(1, 3));
  EXPECT_EQ(error_of(
                [&] {
                  mixer->forward(Tensor::zeros({1, 3, 8}), tokens);
                },
                {"deconstructed: no fixed sequence to read", "LanguageModel"}),
            "");
}

// Groups of layers with other lengths: each sparse layer reads the keys of its own group's first layer.
TEST(LanguageModel, SchedulesOfHySparseBesideEachOtherStayApart) {
  LanguageModelOptions options = test::tiny_model();
  options.layers = 10;
  const HySparseOptions short_one{.heads = 4, .kv_heads = 2, .sparse = 3, .block = 8, .blocks = 1, .window = 4},
      long_one{.heads = 4, .kv_heads = 4, .sparse = 4, .block = 4, .blocks = 3, .window = 4};
  options.mixers = {short_one, long_one};
  options.pattern = {0, 0, 0, 0, 0, 1, 0, 1, 1, 1};
  LanguageModel model(options, Rng(1));
  Tokens tokens(plain_tokens(1, 9));
  EXPECT_EQ(model.hidden(test::tiny_ids(1, 9), tokens).shape(), Shape({1, 9, 16}));
  for (auto [name, heads] : {std::pair("hysparse.0.k", 2), {"hysparse.4.k", 2}, {"hysparse.5.k", 4}})
    EXPECT_EQ(tokens.shared(name).size(2), heads) << name;
}

// A program may make such a pattern without a config, which refuses it.
TEST(LanguageModel, ASparseLayerBehindTheFullLayerOfAnotherScheduleIsRefused) {
  LanguageModelOptions options = test::tiny_model();
  options.layers = 2;
  HySparseOptions one{.heads = 4, .kv_heads = 2, .sparse = 1, .block = 2, .blocks = 3, .window = 4}, other = one;
  auto error = [&](std::initializer_list<std::string_view> parts) {
    options.mixers = {one, other};
    LanguageModel model(options, Rng(1));
    Tokens tokens(plain_tokens(1, 9));
    return error_of([&] { model.hidden(test::tiny_ids(1, 9), tokens); }, parts);
  };
  other.block = 8;
  EXPECT_EQ(error({"block ", " of 2 blocks of 8 tokens", "cut to the same length"}), "");
  other.kv_heads = 4;
  EXPECT_EQ(error({"hysparse: 4 key heads", "give all layers of a schedule the same options"}), "");
}

TEST(LanguageModel, PackedDocumentsEqualSeparateOnes) {
  LanguageModel model(test::tiny_model(), Rng(1));
  Tensor packed = test::tiny_ids(1, 9);
  TokenData data = plain_tokens(1, 9);
  data.documents = Tensor::from<int32_t>({0, 0, 0, 0, 1, 1, 1, 1, 1}, {1, 9});
  data.document_positions = Tensor::from<int32_t>({0, 1, 2, 3, 0, 1, 2, 3, 4}, {1, 9});
  Tokens tokens(data);
  Tensor together = model.logits(packed, tokens);
  Tokens alone(plain_tokens(1, 5));
  Tensor second = Tensor::from(std::span<const int32_t>(packed.data<int32_t>() + 4, 5), {1, 5});
  EXPECT_LT(max_difference(together.slice(1, 4, 9), model.logits(second, alone)), 1e-5);
}

// Plans of packed documents are made once per step, whatever the number of layers.
TEST(LanguageModel, LayersShareThePlansOfAttention) {
  TokenData data = plain_tokens(2, 9);
  data.documents = Tensor::from<int32_t>({0, 0, 0, 0, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0}, {2, 9});
  data.document_positions = Tensor::from<int32_t>({0, 1, 2, 3, 0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6, 7, 8}, {2, 9});
  auto num_kept = [&](int64_t layers) {
    LanguageModelOptions options = test::tiny_model();
    options.layers = layers;
    LanguageModel model(options, Rng(1));
    Tokens tokens(data, {.is_training = true});
    const Tensor ids = test::tiny_ids(2, 9);
    backward(model.loss(ids, ids, tokens, 1.0 / 18).loss);
    return tokens.attention_tokens().plans ? tokens.attention_tokens().plans->num_kept() : 0;
  };
  EXPECT_GT(num_kept(1), 0);
  EXPECT_EQ(num_kept(3), num_kept(1));
}

TEST(LanguageModel, RecomputeGivesTheSameGradientBits) {
  auto grads = [](Recompute recompute) {
    LanguageModelOptions options = test::tiny_model();
    options.recompute = recompute;
    options.residual_dropout = 0.2;
    options.mixers = {SoftmaxOptions{.heads = 4, .kv_heads = 2, .qk_norm = QkNorm::rms, .dropout = 0.1}};
    LanguageModel model(options, Rng(5));
    Tokens tokens(plain_tokens(2, 8), {.is_training = true, .rng = Rng(9)});
    backward(model.loss(test::tiny_ids(2, 8), test::tiny_ids(2, 8, 4), tokens, 0.1).loss);
    std::vector<std::vector<float>> all;
    for (const NamedParam& p : model.params()) all.push_back(p.param->grad().to_vector<float>());
    return all;
  };
  auto plain = grads(Recompute::none);
  EXPECT_TRUE(grads(Recompute::blocks) == plain);
  EXPECT_TRUE(grads(Recompute::mixers) == plain);
}

TEST(LanguageModel, Bf16StaysNearF32) {
  LanguageModel model(test::tiny_model(), Rng(1));
  Tokens first(plain_tokens(2, 8)), second(plain_tokens(2, 8));
  double f32 = model.loss(test::tiny_ids(2, 8), test::tiny_ids(2, 8, 4), first, 1.0 / 16).loss.value().item();
  model.set_compute(kBF16);
  LanguageModelLoss loss = model.loss(test::tiny_ids(2, 8), test::tiny_ids(2, 8, 4), second, 1.0 / 16);
  EXPECT_NEAR(loss.loss.value().item(), f32, 0.02);
  backward(loss.loss);
  for (const NamedParam& p : model.params()) {
    ASSERT_TRUE(p.param->grad().defined()) << p.name;
    EXPECT_EQ(p.param->grad().dtype(), kF32) << p.name;
  }
}

TEST(Residual, RoutedStreamsStartAsTheStandardOne) {
  auto logits = [](const ResidualMaker& residual) {
    LanguageModelOptions options = test::tiny_model();
    options.layers = 3;
    options.norm.eps = 1e-12;
    options.std = 0.5;
    options.residual = residual;
    LanguageModel model(options, Rng(1));
    model.set_compute(kF64);
    Tokens tokens(plain_tokens(2, 7));
    return model.logits(test::tiny_ids(2, 7), tokens).to_vector<double>();
  };
  std::vector<double> standard = logits(StandardResidualOptions{});
  std::vector<ResidualMaker> equal{RoutedResidualOptions{}, RoutedResidualOptions{.combine = ResidualCombine::add}};
  for (int64_t blocks = 1; blocks <= 6; ++blocks)
    equal.push_back(RoutedResidualOptions{.sources = ResidualSources::block_sums, .blocks = blocks});
  for (size_t i = 0; i < equal.size(); ++i) {
    std::vector<double> routed = logits(equal[i]);
    for (size_t j = 0; j < routed.size(); ++j) ASSERT_NEAR(routed[j], standard[j], 1e-8) << i;
  }
  std::vector<double> delta_block = logits(
      RoutedResidualOptions{.sources = ResidualSources::block_sums, .combine = ResidualCombine::add, .blocks = 2});
  double difference = 0;
  for (size_t j = 0; j < standard.size(); ++j)
    difference = std::max(difference, std::abs(delta_block[j] - standard[j]));
  EXPECT_GT(difference, 1e-3);  // inside a block the mean covers finished blocks only
}

TEST(Residual, RecomputeGivesTheSameGradientBits) {
  for (const ResidualRow& row : residual_table()) {
    auto grads = [&](Recompute recompute) {
      LanguageModelOptions options = test::tiny_model();
      options.recompute = recompute;
      options.residual_dropout = 0.2;
      options.residual = row.make;
      LanguageModel model(options, Rng(5));
      Tokens tokens(plain_tokens(2, 8), {.is_training = true, .rng = Rng(9)});
      backward(model.loss(test::tiny_ids(2, 8), test::tiny_ids(2, 8, 4), tokens, 0.1).loss);
      std::vector<std::vector<float>> all;
      for (const NamedParam& p : model.params())
        all.push_back(p.param->grad().defined() ? p.param->grad().to_vector<float>() : std::vector<float>());
      return all;
    };
    auto plain = grads(Recompute::none);
    EXPECT_TRUE(grads(Recompute::blocks) == plain) << row.name;
    EXPECT_TRUE(grads(Recompute::mixers) == plain) << row.name;
  }
}

TEST(Residual, BlocksByDefaultSuitSmallModels) {
  for (int64_t sublayers : {1, 2, 4, 6, 8, 24}) {
    RoutedResidualOptions options{.sources = ResidualSources::block_sums};
    EXPECT_NO_THROW(options({.dim = 8, .sublayers = sublayers}, Rng(1))) << sublayers;
  }
}

TEST(Residual, RefusesImpossibleOptions) {
  auto make = [](const RoutedResidualOptions& options) {
    return [options] { options({.dim = 8, .sublayers = 4}, Rng(1)); };
  };
  EXPECT_EQ(
      error_of(make({.sources = ResidualSources::block_sums, .blocks = 5}), {"5 blocks of 4 sublayers", "1 .. 4"}), "");
  EXPECT_EQ(error_of(make({.sources = ResidualSources::states, .window = 2}), {"depth window of 2", "outputs"}), "");
}

TEST(Model, RefusesImpossibleOptions) {
  auto with = [](auto change) {
    LanguageModelOptions options = test::tiny_model();
    change(options);
    return [options] { LanguageModel model(options, Rng(1)); };
  };
  auto with_mixer = [&](const SoftmaxOptions& mixer) { return with([&](auto& o) { o.mixers = {mixer}; }); };
  EXPECT_EQ(error_of(with_mixer({.heads = 3}), {"dim 16 is not a multiple of heads 3"}), "");
  EXPECT_EQ(error_of(with_mixer({.heads = 4, .kv_heads = 3}), {"heads 4 is not a multiple of kv_heads 3"}), "");
  EXPECT_EQ(error_of(with_mixer({.heads = 4, .head_dim = 5}), {"head_dim 5 is odd"}), "");
  EXPECT_EQ(error_of(with([](auto& o) { o.pattern = {1}; }), {"pattern names mixer 1 of 1"}), "");
  EXPECT_EQ(error_of(with([](auto& o) { o.layers = 0; }), {"layers 0"}), "");
  LanguageModel model(test::tiny_model(), Rng(1));
  Tokens tokens(plain_tokens(1, 4));
  EXPECT_EQ(error_of([&] { model.logits(test::tiny_ids(1, 5), tokens); }, {"ids are [1, 5] i32 cpu, positions [1, 4]"}),
            "");
  Tensor bad = Tensor::full({1, 4}, 11, kI32);
  EXPECT_EQ(error_of([&] { model.logits(bad, tokens); }, {"11", "where: model.embedding"}), "");
  EXPECT_EQ(error_of([&] { tokens.shared("memory"); }, {"no value 'memory'", "there are: none"}), "");
}

}  // namespace
}  // namespace weft
