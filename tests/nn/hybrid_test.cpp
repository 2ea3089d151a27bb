// Models whose layers have mixers of several kinds.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "tests/support/errors.h"
#include "weft/autograd/gradient_check.h"
#include "weft/models/language_model.h"

namespace weft {
namespace {

double max_difference(const Tensor& a, const Tensor& b) {
  const auto x = a.to_vector<double>(), y = b.to_vector<double>();
  EXPECT_EQ(x.size(), y.size());
  double most = 0;
  for (size_t i = 0; i < std::min(x.size(), y.size()); ++i) most = std::max(most, std::abs(x[i] - y[i]));
  return most;
}

Tensor ids(int64_t batch, int64_t tokens) {
  Tensor out = Tensor::empty({batch, tokens}, kI32, Device::cpu());
  for (int64_t i = 0; i < batch * tokens; ++i)
    out.mutable_data<int32_t>()[i] = static_cast<int32_t>(Rng(5).below(11, static_cast<uint64_t>(i)));
  return out;
}

LanguageModelOptions hybrid(std::vector<MixerMaker> mixers, std::vector<int> pattern) {
  return {.vocab = 11,
          .dim = 16,
          .layers = static_cast<int64_t>(pattern.size()),
          .context = 24,
          .mixers = std::move(mixers),
          .pattern = std::move(pattern),
          .ffn = {.hidden = 24},
          .std = 0.2};
}

// Rows that decode, several in one model: full attention, windows, states and shifts in one cache, with a document that ends within.
TEST(Hybrid, DecodesWithACacheOfMixedKinds) {
  std::vector<MixerMaker> mixers;
  for (const MixerRow& row : mixer_table()) {
    // A model has one kind of fixed sequence.
    const FixedSequence fixed = row({.dim = 16, .context = 24, .layers = 8}, Rng(1))->fixed_sequence();
    if (row.lacks.decode.empty() && row.lacks.documents.empty() && fixed != FixedSequence::text) mixers.push_back(row);
  }
  constexpr size_t kLayers = 8;
  const std::vector<int32_t> documents{0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
  std::vector<int32_t> local;
  for (size_t t = 0; t < documents.size(); ++t) local.push_back(static_cast<int32_t>(t < 7 ? t : t - 7));
  const auto T = static_cast<int64_t>(documents.size());
  auto part = [&](int64_t begin, int64_t end) {
    auto of = [&](const std::vector<int32_t>& all) {
      return Tensor::from(std::span(all).subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin)),
                          {1, end - begin});
    };
    TokenData data = plain_tokens(1, end - begin, begin);
    data.documents = of(documents);
    data.document_positions = of(local);
    return data;
  };
  for (size_t first = 0; first < mixers.size(); first += kLayers) {
    std::vector<MixerMaker> some;
    std::vector<int> pattern;
    for (size_t i = 0; i < kLayers; ++i) {
      some.push_back(mixers[(first + i) % mixers.size()]);
      pattern.push_back(static_cast<int>(i));
    }
    LanguageModel model(hybrid(some, pattern), Rng(3));
    model.set_compute(kF64);
    const Tensor all = ids(1, T);
    Tokens parallel(part(0, T));
    const Tensor expected = model.logits(all, parallel);
    auto cache = make_cache(1, T);
    for (int64_t begin = 0, count = 5; begin < T; begin += count, count = begin % 3 == 0 ? 2 : 1) {
      count = std::min(count, T - begin);
      Tokens tokens(part(begin, begin + count), {.cache = cache});
      const std::vector<int32_t> text = all.to_vector<int32_t>();
      const Tensor here =
          Tensor::from(std::span(text).subspan(static_cast<size_t>(begin), static_cast<size_t>(count)), {1, count});
      EXPECT_LT(max_difference(model.logits(here, tokens), expected.slice(1, begin, begin + count)), 1e-9)
          << "mixers from " << first << ", token " << begin;
    }
  }
}

// Of three Hymba layers that share, only the first has projections of keys and values. They get the gradients of all three.
TEST(Hybrid, LayersShareKeysAndValues) {
  LanguageModelOptions options = hybrid({HymbaOptions{.heads = 2, .window = 4, .meta = 2, .sharing = 3}}, {0, 0, 0});
  LanguageModel model(options, Rng(2));
  model.set_compute(kF64);
  std::vector<Var*> variables;
  GradientCheckOptions check{.max_elements = 4};
  int64_t projections = 0;
  for (const NamedParam& p : model.params()) {
    projections += p.name.ends_with("mixer.k.weight") || p.name.ends_with("mixer.v.weight");
    if (p.name.find("mixer") == std::string::npos) continue;
    variables.push_back(&p.param->var());
    check.names.push_back(p.name);
  }
  EXPECT_EQ(projections, 2);
  const Tensor input = ids(2, 7);
  auto loss = [&](std::span<const Var>) {
    Tokens tokens(plain_tokens(2, 7));
    return model.loss(input, input, tokens, 0.1).loss;
  };
  const GradientCheck result = check_gradients(loss, {}, variables, check);
  EXPECT_TRUE(result.passed) << result.report;
}

// Full attention in a few layers, as published: the layers between them share in pairs, counted from each full layer on.
TEST(Hybrid, LayersShareKeysWithinRunsOfTheirMixer) {
  LanguageModel model(
      hybrid({HymbaOptions{.heads = 2}, HymbaOptions{.heads = 2, .window = 4, .sharing = 2}}, {0, 1, 1, 0, 1, 1, 1, 0}),
      Rng(2));
  std::string with_keys;
  for (const NamedParam& p : model.params())
    if (p.name.ends_with("mixer.k.weight")) with_keys += p.name.substr(std::string("layers.").size(), 1);
  EXPECT_EQ(with_keys, "013467");
  Tokens tokens(plain_tokens(2, 7));
  for (double x : cast(Var(model.logits(ids(2, 7), tokens)), kF64).value().to_vector<double>())
    ASSERT_TRUE(std::isfinite(x));
}

// With chunks of one token nothing is averaged over time: attention on (1 - f) k and (1 - f) v.
TEST(Hybrid, RatWithChunksOfOneTokenIsAttention) {
  const MixerArgs args{.dim = 8, .context = 16, .rotary = std::nullopt, .std = 0.5, .out_std = 0.5};
  auto rat = RatOptions{.heads = 2, .chunk = 1}(args, Rng(1));
  rat->set_compute(kF64);
  Tensor x = Tensor::empty({2, 9, 8}, kF64, Device::cpu());
  for (int64_t i = 0; i < x.num_elements(); ++i)
    x.mutable_data<double>()[i] = static_cast<double>(Rng(4).normal(static_cast<uint64_t>(i)));
  std::map<std::string, Var> p;
  for (const NamedParam& param : rat->params()) p[param.name] = *param.param;
  Tokens tokens(plain_tokens(2, 9)), others(plain_tokens(2, 9));
  Var keep = sigmoid(-linear(x, p.at("gate.weight")));
  auto heads = [](const Var& y) { return split_heads(y, 2); };
  Var y = others.attend(heads(linear(x, p.at("q.weight"))), heads(linear(x, p.at("k.weight")) * keep),
                        heads(linear(x, p.at("v.weight")) * keep))[0];
  Var expected = linear(merge_heads(y) * sigmoid(linear(x, p.at("z.weight"))), p.at("out.weight"));
  EXPECT_LT(max_difference(rat->forward(x, tokens).value(), expected.value()), 1e-12);
}

// A replaced layer has the positions that its attention had: the model's, or none, then in heads of any width.
TEST(Hybrid, ReplacementsHaveTheModelsPositionsOrNone) {
  const MixerArgs args{.dim = 12, .context = 24, .std = 0.4, .out_std = 0.4};
  MixerArgs still = args;
  still.rotary.reset();
  const ReplacementOptions model{.heads = 2, .window = 5};
  ReplacementOptions none = model;
  none.position = MixerPosition::none;
  const Tensor x = normal_init({2, 9, 12}, Rng(2), 1);
  auto run = [&](const ReplacementOptions& o, const MixerArgs& of) {
    NoGrad no_grad;
    Tokens tokens(plain_tokens(2, 9, 7));
    return o(of, Rng(3))->forward(x, tokens).value().to_vector<float>();
  };
  EXPECT_EQ(run(none, args), run(model, still));
  EXPECT_EQ(run(model, args), run({.heads = 2, .window = 5}, args));
  EXPECT_NE(run(none, args), run(model, args));
  none.heads = 4;
  EXPECT_EQ(run(none, args).size(), size_t{2 * 9 * 12});
  for (ReplacementKind kind : {ReplacementKind::linear, ReplacementKind::identity})
    EXPECT_THROW((ReplacementOptions{.kind = kind, .heads = 2, .position = MixerPosition::alibi}(args, Rng(3))), Error);
  const ReplacementOptions identity{.kind = ReplacementKind::identity, .heads = 2, .position = MixerPosition::none};
  EXPECT_EQ(test::error_of([&] { identity(args, Rng(3)); }, {"kind identity with position none", "leave position out"}),
            "");
}

// Bytes of the cache after each of so many tokens, read one by one.
std::vector<int64_t> cached_by_token(const LanguageModelOptions& options, int64_t tokens) {
  NoGrad no_grad;
  LanguageModel model(options, Rng(3));
  auto cache = make_cache(1, options.context);
  std::vector<int64_t> bytes;
  for (int64_t t = 0; t < tokens; ++t) {
    Tokens here(plain_tokens(1, 1, t), {.cache = cache});
    model.logits(ids(1, 1), here);
    bytes.push_back(cached_bytes(*cache));
  }
  return bytes;
}

// Beside states of one size, a key and a value per chunk, and room for one before the first chunk is over.
TEST(Hybrid, RatKeepsKeysOfLastTokensOfChunks) {
  for (int64_t chunk : {1, 3, 8}) {
    const LanguageModelOptions options = hybrid({RatOptions{.heads = 2, .chunk = chunk}}, {0, 0});
    const std::vector<int64_t> bytes = cached_by_token(options, options.context);
    const int64_t of_a_chunk = 2 * 2 * options.dim * static_cast<int64_t>(sizeof(float));  // two layers
    for (int64_t t = 0; t < options.context; ++t) {
      const int64_t chunks = std::max<int64_t>((t + 1) / chunk, 1);
      EXPECT_EQ(bytes[static_cast<size_t>(t)], bytes[0] + (chunks - 1) * of_a_chunk) << chunk << " " << t;
    }
    EXPECT_LE(bytes[0], 2 * of_a_chunk) << "a key, a value, and their running means";
  }
}

TEST(Hybrid, RatCountsTheKeysThatItsQueriesSee) {
  for (int64_t chunk : {1, 4, 7, 64})
    for (int64_t context : {1, 7, 24, 64}) {
      const auto rat = RatOptions{.heads = 2, .chunk = chunk}({.dim = 8, .context = context}, Rng(1));
      int64_t keys = 0;
      for (int64_t t = 0; t < context; ++t) keys += t / chunk + 1;
      EXPECT_NEAR(rat->keys_per_query(context), static_cast<double>(keys) / static_cast<double>(context), 1e-12)
          << chunk << " " << context;
    }
}

// Two layers that share have one cache of keys and values.
TEST(Hybrid, LayersThatShareKeepTheirKeysOnce) {
  constexpr int64_t kWindow = 4, kLayers = 4;
  auto of_sharing = [&](int64_t sharing) {
    return hybrid({HymbaOptions{.heads = 2, .kv_heads = 1, .window = kWindow, .meta = 2, .sharing = sharing}},
                  std::vector<int>(kLayers, 0));
  };
  const LanguageModelOptions alone = of_sharing(1), in_pairs = of_sharing(2);
  const std::vector<int64_t> each = cached_by_token(alone, 17), shared = cached_by_token(in_pairs, 17);
  const int64_t of_a_layer = 2 * (2 * (kWindow - 1)) * (alone.dim / 2) * static_cast<int64_t>(sizeof(float));
  for (size_t t = 0; t < each.size(); ++t) EXPECT_EQ(each[t] - shared[t], kLayers / 2 * of_a_layer) << t;

  LanguageModel model(in_pairs, Rng(3));
  model.set_compute(kF64);
  const Tensor all = ids(1, 17);
  Tokens parallel(plain_tokens(1, 17));
  const Tensor expected = model.logits(all, parallel);
  auto cache = make_cache(1, 24);
  const std::vector<int32_t> text = all.to_vector<int32_t>();
  for (int64_t t = 0; t < 17; ++t) {
    NoGrad no_grad;
    Tokens tokens(plain_tokens(1, 1, t), {.cache = cache});
    const Tensor here = Tensor::from(std::span(text).subspan(static_cast<size_t>(t), 1), {1, 1});
    EXPECT_LT(max_difference(model.logits(here, tokens), expected.slice(1, t, t + 1)), 1e-10) << t;
  }
}

}  // namespace
}  // namespace weft
