// Modules, Tokens and the language model: names, gradients, causality, decoding, recompute, bf16, errors.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/errors.h"
#include "tests/support/random.h"
#include "weft/autograd/gradient_check.h"
#include "weft/autograd/recompute.h"
#include "weft/models/language_model.h"

namespace weft {
namespace {

using test::error_of;

LanguageModelOptions tiny(PositionKind position = PositionKind::rotary) {
  return {.vocab = 11,
          .dim = 16,
          .layers = 2,
          .context = 12,
          .norm = {},
          .position = position,
          .mixers = {SoftmaxOptions{.heads = 4, .kv_heads = 2, .qk_norm = QkNorm::rms}},
          .ffn = {.hidden = 24}};
}

Tensor ids(int64_t batch, int64_t tokens, uint64_t seed = 1) {
  Tensor t = Tensor::empty({batch, tokens}, kI32);
  for (int64_t i = 0; i < batch * tokens; ++i)
    t.mutable_data<int32_t>()[i] = static_cast<int32_t>(Rng(seed).below(11, static_cast<uint64_t>(i)));
  return t;
}

Tensor contiguous_ids(const Tensor& all, int64_t begin, int64_t end) {
  auto values = all.slice(1, begin, end).to_vector<int32_t>();
  return Tensor::from(std::span<const int32_t>(values), {all.size(0), end - begin});
}

double max_difference(const Tensor& a, const Tensor& b) {
  auto x = a.to_vector<float>(), y = b.to_vector<float>();
  EXPECT_EQ(x.size(), y.size());
  double worst = 0;
  for (size_t i = 0; i < x.size(); ++i)
    worst = std::max(worst, std::abs(static_cast<double>(x[i]) - static_cast<double>(y[i])));
  return worst;
}

TEST(LanguageModel, NamesItsParametersByPath) {
  LanguageModel model(tiny(), Rng(1));
  std::vector<std::string> names;
  for (const NamedParam& p : model.params()) names.push_back(p.name);
  EXPECT_EQ(names.front(), "embedding.weight");
  EXPECT_EQ(names.back(), "norm.weight");
  EXPECT_NE(std::find(names.begin(), names.end(), "layers.1.mixer.q.weight"), names.end());
  EXPECT_NE(std::find(names.begin(), names.end(), "layers.0.mixer.k_norm.weight"), names.end());
  EXPECT_NE(std::find(names.begin(), names.end(), "layers.0.ffn.down.weight"), names.end());
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

TEST(LanguageModel, GradientsOfEveryParameterAreRight) {
  LanguageModel model(tiny(), Rng(3));
  model.set_compute(kF64);
  std::vector<Var*> variables;
  GradientCheckOptions options{.max_elements = 6};
  for (const NamedParam& p : model.params()) {
    variables.push_back(&p.param->var());
    options.names.push_back(p.name);
  }
  Tensor input = ids(2, 5), targets = ids(2, 5, 2);
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
    LanguageModel model(tiny(position), Rng(1));
    Tensor a = ids(1, 9), b = a;
    b = ids(1, 9, 77);
    for (int64_t t = 0; t < 6; ++t) b.mutable_data<int32_t>()[t] = a.data<int32_t>()[t];
    Tokens first(plain_tokens(1, 9)), second(plain_tokens(1, 9));
    Tensor x = model.logits(a, first), y = model.logits(b, second);
    EXPECT_EQ(x.slice(1, 0, 6).to_vector<float>(), y.slice(1, 0, 6).to_vector<float>());
    EXPECT_GT(max_difference(x.slice(1, 6, 9), y.slice(1, 6, 9)), 1e-4);
  }
}

TEST(LanguageModel, DecodingGivesTheParallelLogits) {
  LanguageModelOptions options = tiny();
  options.mixers.push_back(SoftmaxOptions{.heads = 2, .window = 3, .softcap = 5});
  LanguageModel model(options, Rng(1));
  Tensor all = ids(2, 10);
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
    LanguageModelOptions options = tiny();
    options.mixers.push_back(DeconstructedOptions{kind, 2});
    options.layers = 4;
    options.fixed_text = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0};
    Tensor all = ids(2, 10);
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
  LanguageModelOptions short_text = tiny();
  short_text.mixers = {DeconstructedOptions{DeconstructedKind::fixed_text, 2}};
  EXPECT_EQ(error_of([&] { LanguageModel(short_text, Rng(1)); },
                     {"a fixed text of 0 ids for a context of 12", "LanguageModelOptions::fixed_text"}),
            "");
}

// Of a batch that is the fixed text itself, each layer reads what plain attention reads.
TEST(LanguageModel, FixedSequencesHaveThePositionsOfTheBatch) {
  for (PositionKind position : {PositionKind::learned, PositionKind::none, PositionKind::rotary}) {
    LanguageModelOptions options = tiny(position);
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
  LanguageModelOptions options = tiny(PositionKind::learned);
  options.mixers = {DeconstructedOptions{DeconstructedKind::random_embedding, 2}};
  LanguageModel model(options, Rng(1));
  Tokens tokens(plain_tokens(1, 3));
  model.hidden(ids(1, 3), tokens);
  Var sum = model.buffers()[0].buffer->value();
  for (const NamedParam& p : model.params())
    if (p.name == "positions.weight") sum = sum + Var(*p.param);
  Var expected = unsqueeze(rms_norm(sum, Tensor::full({16}, 1), options.norm.eps), 0);
  EXPECT_LT(max_difference(tokens.shared(fixed_sequence_name(0)).value(), expected.value()), 1e-6);
}

TEST(LanguageModel, FixedSequencesRunThroughLayersThatReadTheEmbedding) {
  LanguageModelOptions options = tiny(PositionKind::learned);
  options.mixers = {DeconstructedOptions{DeconstructedKind::static_embedding, 2},
                    DeconstructedOptions{DeconstructedKind::random_embedding, 2}};
  LanguageModel model(options, Rng(1));
  Tokens tokens(plain_tokens(1, 5));
  EXPECT_EQ(model.hidden(ids(1, 5), tokens).shape(), Shape({1, 5, 16}));
}

TEST(LanguageModel, PackedDocumentsEqualSeparateOnes) {
  LanguageModel model(tiny(), Rng(1));
  Tensor packed = ids(1, 9);
  TokenData data = plain_tokens(1, 9);
  data.documents = Tensor::from<int32_t>({0, 0, 0, 0, 1, 1, 1, 1, 1}, {1, 9});
  data.document_positions = Tensor::from<int32_t>({0, 1, 2, 3, 0, 1, 2, 3, 4}, {1, 9});
  Tokens tokens(data);
  Tensor together = model.logits(packed, tokens);
  Tokens alone(plain_tokens(1, 5));
  Tensor second = Tensor::from(std::span<const int32_t>(packed.data<int32_t>() + 4, 5), {1, 5});
  EXPECT_LT(max_difference(together.slice(1, 4, 9), model.logits(second, alone)), 1e-5);
}

TEST(LanguageModel, RecomputeGivesTheSameGradientBits) {
  auto grads = [](Recompute recompute) {
    LanguageModelOptions options = tiny();
    options.recompute = recompute;
    options.residual_dropout = 0.2;
    options.mixers = {SoftmaxOptions{.heads = 4, .kv_heads = 2, .qk_norm = QkNorm::rms, .dropout = 0.1}};
    LanguageModel model(options, Rng(5));
    Tokens tokens(plain_tokens(2, 8), {.is_training = true, .rng = Rng(9)});
    backward(model.loss(ids(2, 8), ids(2, 8, 4), tokens, 0.1).loss);
    std::vector<std::vector<float>> all;
    for (const NamedParam& p : model.params()) all.push_back(p.param->grad().to_vector<float>());
    return all;
  };
  auto plain = grads(Recompute::none);
  EXPECT_TRUE(grads(Recompute::blocks) == plain);
  EXPECT_TRUE(grads(Recompute::mixers) == plain);
}

TEST(LanguageModel, Bf16StaysNearF32) {
  LanguageModel model(tiny(), Rng(1));
  Tokens first(plain_tokens(2, 8)), second(plain_tokens(2, 8));
  double f32 = model.loss(ids(2, 8), ids(2, 8, 4), first, 1.0 / 16).loss.value().item();
  model.set_compute(kBF16);
  LanguageModelLoss loss = model.loss(ids(2, 8), ids(2, 8, 4), second, 1.0 / 16);
  EXPECT_NEAR(loss.loss.value().item(), f32, 0.02);
  backward(loss.loss);
  for (const NamedParam& p : model.params()) {
    ASSERT_TRUE(p.param->grad().defined()) << p.name;
    EXPECT_EQ(p.param->grad().dtype(), kF32) << p.name;
  }
}

TEST(Residual, RoutedStreamsStartAsTheStandardOne) {
  auto logits = [](const ResidualMaker& residual) {
    LanguageModelOptions options = tiny();
    options.layers = 3;
    options.norm.eps = 1e-12;
    options.std = 0.5;
    options.residual = residual;
    LanguageModel model(options, Rng(1));
    model.set_compute(kF64);
    Tokens tokens(plain_tokens(2, 7));
    return model.logits(ids(2, 7), tokens).to_vector<double>();
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
      LanguageModelOptions options = tiny();
      options.recompute = recompute;
      options.residual_dropout = 0.2;
      options.residual = row.make;
      LanguageModel model(options, Rng(5));
      Tokens tokens(plain_tokens(2, 8), {.is_training = true, .rng = Rng(9)});
      backward(model.loss(ids(2, 8), ids(2, 8, 4), tokens, 0.1).loss);
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

TEST(Tokens, ScanShiftAndSumKnowDocumentsAndCaches) {
  TokenData data = plain_tokens(1, 5);
  data.documents = Tensor::from<int32_t>({0, 0, 1, 1, 1}, {1, 5});
  Var x = Tensor::from<float>({1, 2, 3, 4, 5}, {1, 5, 1});
  Tokens tokens(data);
  EXPECT_EQ(tokens.scan(x).value().to_vector<float>(), (std::vector<float>{1, 3, 3, 7, 12}));
  EXPECT_EQ(tokens.shift(x, 1).value().to_vector<float>(), (std::vector<float>{0, 1, 0, 3, 4}));
  EXPECT_EQ(tokens.shift(x, 7).value().to_vector<float>(), (std::vector<float>(5, 0)));
  EXPECT_EQ(tokens.sum(x).value().to_vector<float>(), (std::vector<float>{15}));
  EXPECT_EQ(tokens.scan(x, 2).value().to_vector<float>(), (std::vector<float>{1, 3, 3, 7, 9}));
  EXPECT_EQ(tokens.scan(x, 1).value().to_vector<float>(), (std::vector<float>{1, 2, 3, 4, 5}));
  EXPECT_EQ(tokens.scan(x, 9).value().to_vector<float>(), tokens.scan(x).value().to_vector<float>());

  NoGrad no_grad;
  auto cache = make_cache(1, 5);
  std::vector<float> scanned, shifted;
  for (int64_t t = 0; t < 5; ++t) {
    Tokens one(plain_tokens(1, 1, t), {.cache = cache});
    Var token = x.value().slice(1, t, t + 1);
    scanned.push_back(one.scan(token).value().to_vector<float>()[0]);
    shifted.push_back(one.shift(token, 2).value().to_vector<float>()[0]);
    one.finish_decode_step();
  }
  EXPECT_EQ(scanned, (std::vector<float>{1, 3, 6, 10, 15}));
  EXPECT_EQ(shifted, (std::vector<float>{0, 0, 1, 2, 3}));
  Tokens packed(data, {.cache = make_cache(1, 5)});
  EXPECT_EQ(packed.scan(x).value().to_vector<float>(), (std::vector<float>{1, 3, 3, 7, 12}));
  EXPECT_EQ(packed.shift(x, 1).value().to_vector<float>(), (std::vector<float>{0, 1, 0, 3, 4}));
  EXPECT_EQ(error_of([&] { tokens.scan(x, -1); }, {"scan: window is -1"}), "");
}

// Windows in decoding, whatever is read at once, and whatever has left them.
TEST(Tokens, ScanOfAWindowDecodesWhatItGivesInParallel) {
  NoGrad no_grad;
  const int64_t T = 11;
  Tensor x = test::random_normal({2, T, 3}, "x");
  for (int64_t t = 0; t < 2; ++t) x.mutable_data<float>()[t * 3] = 1e12f;
  for (int64_t window : {1, 2, 4, 5, 10, 11, 20})
    for (int64_t first : {1, 3, 7}) {
      Tokens all(plain_tokens(2, T));
      Tensor expected = all.scan(x, window).value();
      auto cache = make_cache(2, T);
      for (int64_t begin = 0, count = first; begin < T; begin += count, count = begin < 9 ? 1 : 2) {
        if (begin + count > T) count = T - begin;
        Tokens some(plain_tokens(2, count, begin), {.cache = cache});
        Tensor y = some.scan(x.slice(1, begin, begin + count), window).value();
        some.finish_decode_step();
        EXPECT_LT(max_difference(y, expected.slice(1, begin, begin + count)), 1e-6) << window << " " << begin;
      }
    }
}

// Counted, not read off positions: rows and documents that begin late, gaps, other orders, padding, caches.
TEST(Tokens, VisibleKeysAreThoseInTheRow) {
  auto expect_counts = [](const TokenData& data, int64_t window) {
    Tokens tokens(data);
    const int64_t B = tokens.batch(), T = tokens.num_tokens();
    auto seen = tokens.seen(0, T, T, window).to_vector<bool>();
    auto counts = tokens.visible_keys(window).to_vector<float>();
    for (int64_t i = 0; i < B * T; ++i) {
      auto row = seen.begin() + static_cast<std::ptrdiff_t>(i * T);
      auto n = static_cast<float>(std::count(row, row + static_cast<std::ptrdiff_t>(T), true));
      EXPECT_EQ(counts[static_cast<size_t>(i)], tokens.is_padding(i) ? 1 : n) << i << " window " << window;
    }
  };
  TokenData gaps{.positions = Tensor::from<int32_t>({3, 4, 9, 10, 11, 30}, {1, 6})};
  TokenData mixed{.positions = Tensor::from<int32_t>({7, 2, 6, 3, 5, 4}, {1, 6})};
  TokenData packed = plain_tokens(2, 6, 40);
  packed.documents = Tensor::from<int32_t>({3, 3, 5, 5, 5, -1, -1, 0, 0, -1, 7, 7}, {2, 6});
  for (int64_t window : {0, 1, 2, 3, 100})
    for (const TokenData& data : {plain_tokens(2, 6), plain_tokens(2, 6, 17), gaps, mixed, packed})
      expect_counts(data, window);
  auto cache = make_cache(1, 6), of_documents = make_cache(1, 6);
  for (int64_t t = 0; t < 6; ++t) {
    Tokens one(plain_tokens(1, 1, 20 + t), {.cache = cache});
    EXPECT_EQ(one.visible_keys().item(), static_cast<double>(t + 1));
    EXPECT_EQ(one.visible_keys(3).item(), static_cast<double>(std::min<int64_t>(t + 1, 3)));
    one.finish_decode_step();
    TokenData data = plain_tokens(1, 1, 20 + t);
    data.documents = Tensor::full({1, 1}, t < 4 ? 0 : 1, kI32);
    Tokens two(data, {.cache = of_documents});
    EXPECT_EQ(two.visible_keys().item(), static_cast<double>(t < 4 ? t + 1 : t - 3));
    EXPECT_EQ(two.visible_keys(3).item(), static_cast<double>(t < 4 ? std::min<int64_t>(t + 1, 3) : t - 3));
    two.finish_decode_step();
  }
}

TEST(Tokens, SeenIsCausalInTheWindowAndInTheDocument) {
  const int64_t B = 2, T = 7;
  const std::vector<int32_t> positions{0, 1, 2, 3, 4, 5, 6, 10, 11, 12, 13, 20, 21, 22};
  const std::vector<int32_t> documents{0, 0, 0, 1, 1, 2, 2, 0, 0, 1, 1, 1, -1, -1};
  for (bool has_documents : {false, true}) {
    TokenData data{.positions = Tensor::from(std::span<const int32_t>(positions), {B, T})};
    if (has_documents) data.documents = Tensor::from(std::span<const int32_t>(documents), {B, T});
    Tokens tokens(data);
    for (int64_t window : {0, 1, 3, 7, 9})
      for (auto [begin, end, num_keys] : {std::array<int64_t, 3>{0, T, T}, {2, 5, 5}, {3, 3, 4}, {6, 7, 7}}) {
        auto seen = tokens.seen(begin, end, num_keys, window).to_vector<bool>();
        ASSERT_EQ(std::ssize(seen), B * (end - begin) * num_keys);
        size_t next = 0;
        for (int64_t b = 0; b < B; ++b)
          for (int64_t i = begin; i < end; ++i)
            for (int64_t j = 0; j < num_keys; ++j) {
              auto q = static_cast<size_t>(b * T + i), k = static_cast<size_t>(b * T + j);
              const int32_t distance = positions[q] - positions[k];
              bool is_seen = distance >= 0 && (window == 0 || distance < window);
              if (has_documents) is_seen &= documents[q] == documents[k] && documents[q] >= 0;
              EXPECT_EQ(seen[next++], is_seen) << has_documents << " " << window << ": " << b << " " << i << " " << j;
            }
      }
  }
}

TEST(Tokens, GradientsOfScanShiftAndSumAreRight) {
  TokenData data = plain_tokens(2, 5);
  data.documents = Tensor::from<int32_t>({0, 0, 1, 1, 1, 0, 1, 1, 2, 2}, {2, 5});
  Tensor x = test::random_normal({2, 5, 3}, "x", kF64);
  auto passes = [&](auto f) {
    GradientCheck result = check_gradients(
        [&](std::span<const Var> in) {
          Tokens tokens(data);
          return f(tokens, in[0]);
        },
        {&x, 1});
    EXPECT_TRUE(result.passed) << result.report;
    EXPECT_EQ(result.num_checked, 30);
  };
  passes([](Tokens& tokens, const Var& v) { return tokens.scan(v); });
  passes([](Tokens& tokens, const Var& v) { return tokens.scan(v, 2); });
  passes([](Tokens& tokens, const Var& v) { return tokens.shift(v, 1); });
  passes([](Tokens& tokens, const Var& v) { return tokens.shift(v, 2); });
  passes([](Tokens& tokens, const Var& v) { return tokens.sum(v); });
}

TEST(Tokens, RefusesToShareOutOfARecomputedBlock) {
  Tokens tokens(plain_tokens(1, 2), {.is_training = true});
  Var x = variable(Tensor::full({1, 2, 1}, 1));
  auto block = [&](std::span<const Var> in) {
    tokens.share("memory", in[0]);
    return std::vector<Var>{in[0] * 2.0};
  };
  EXPECT_EQ(error_of(
                [&] {
                  recompute(block, {&x, 1});
                },
                {"share: 'memory' comes from inside recompute()", "use Tokens::recomputed()"}),
            "");
  block({&x, 1});
  EXPECT_TRUE(tokens.shared("memory").wants_grad());
}

TEST(Tokens, ALossIsNamedByItsModule) {
  LanguageModel model({.vocab = 8,
                       .dim = 8,
                       .layers = 2,
                       .context = 4,
                       .mixers = {MoaOptions{.experts = 2, .active = 1}},
                       .recompute = Recompute::blocks},
                      Rng(1));
  Tokens tokens(plain_tokens(1, 4), {.is_training = true});
  model.hidden(Tensor::full({1, 4}, 1, kI32), tokens);
  std::vector<std::string> names;
  for (const Tokens::Loss& loss : tokens.losses()) names.push_back(loss.name);
  EXPECT_EQ(names, (std::vector<std::string>{
                       "model.layers.0.mixer.router.z_loss", "model.layers.0.mixer.router.balance_loss",
                       "model.layers.1.mixer.router.z_loss", "model.layers.1.mixer.router.balance_loss"}));
}

TEST(Tokens, RecomputedCarriesSharedValuesAndLossesInAndOut) {
  Tensor x = test::random_normal({2, 4, 3}, "x", kF64), memory = test::random_normal({2, 4, 3}, "memory", kF64);
  auto grads = [&](bool is_recomputed) {
    Var in = variable(x), old = variable(memory);
    Tokens tokens(plain_tokens(2, 4), {.is_training = true});
    tokens.share("old", old);
    auto block = [&](const Var& v) {
      tokens.share("fresh", v * tokens.shared("old"));
      tokens.add_loss("balance", sum_all(square(v)), 0.5);
      return sin(v);
    };
    Var y = is_recomputed ? tokens.recomputed(block, in) : block(in);
    EXPECT_EQ(tokens.losses().size(), 1u);
    backward(sum_all(y * tokens.shared("fresh")) + tokens.losses()[0].value * tokens.losses()[0].weight);
    auto all = in.grad().to_vector<double>(), more = old.grad().to_vector<double>();
    all.insert(all.end(), more.begin(), more.end());
    return all;
  };
  EXPECT_EQ(grads(true), grads(false));
}

TEST(Buffer, MovesToTheMeanOfWhatWasAdded) {
  Buffer mean(Tensor::full({2}, 1, kF32), 0.75);
  mean.update();
  EXPECT_EQ(mean.value().to_vector<float>(), (std::vector<float>{1, 1}));
  auto add = [&](float a, float b, double count) {
    mean.add(Tensor::from<float>({a, b}, {2}), Tensor::full({1}, count, kF32));
  };
  add(2, 4, 1);
  add(4, 8, 2);
  mean.update();
  EXPECT_EQ(mean.value().to_vector<float>(), (std::vector<float>{1.25, 1.75}));
  add(9, 9, 1);
  mean.discard();
  mean.update();
  add(0, 0, 0);  // of a micro-batch of padding
  mean.update();
  EXPECT_EQ(mean.value().to_vector<float>(), (std::vector<float>{1.25, 1.75}));
}

TEST(Tokens, ColumnMassSumsToTheNumberOfQueries) {
  Tokens tokens(plain_tokens(1, 6));
  Var q = test::random_normal({1, 6, 2, 8}, "q"), k = test::random_normal({1, 6, 1, 8}, "k"),
      v = test::random_normal({1, 6, 1, 8}, "v");
  auto [out, lse] = tokens.attend(q, k, v);
  double sum = 0;
  for (float mass : tokens.statistics(q, k, lse).column_mass.to_vector<float>()) sum += static_cast<double>(mass);
  EXPECT_NEAR(sum, 12, 1e-4);
}

TEST(Model, RefusesImpossibleOptions) {
  auto with = [](auto change) {
    LanguageModelOptions options = tiny();
    change(options);
    return [options] { LanguageModel model(options, Rng(1)); };
  };
  auto with_mixer = [&](const SoftmaxOptions& mixer) { return with([&](auto& o) { o.mixers = {mixer}; }); };
  EXPECT_EQ(error_of(with_mixer({.heads = 3}), {"dim 16 is not a multiple of heads 3"}), "");
  EXPECT_EQ(error_of(with_mixer({.heads = 4, .kv_heads = 3}), {"heads 4 is not a multiple of kv_heads 3"}), "");
  EXPECT_EQ(error_of(with_mixer({.heads = 4, .head_dim = 5}), {"head_dim 5 is odd"}), "");
  EXPECT_EQ(error_of(with([](auto& o) { o.pattern = {1}; }), {"pattern names mixer 1 of 1"}), "");
  EXPECT_EQ(error_of(with([](auto& o) { o.layers = 0; }), {"layers 0"}), "");
  LanguageModel model(tiny(), Rng(1));
  Tokens tokens(plain_tokens(1, 4));
  EXPECT_EQ(error_of([&] { model.logits(ids(1, 5), tokens); }, {"ids are [1, 5] i32 cpu, positions [1, 4]"}), "");
  Tensor bad = Tensor::full({1, 4}, 11, kI32);
  EXPECT_EQ(error_of([&] { model.logits(bad, tokens); }, {"11", "where: model.embedding"}), "");
  EXPECT_EQ(error_of([&] { tokens.shared("memory"); }, {"no value 'memory'", "there are: none"}), "");
}

}  // namespace
}  // namespace weft
