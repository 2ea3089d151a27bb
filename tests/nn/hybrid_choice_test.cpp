// Mixers that choose: types of tokens, memories of chunks, blocks of keys.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "src/nn/mixers/hybrids/all_tokens.h"
#include "tests/reference/mixers/hybrids.h"
#include "weft/autograd/gradient_check.h"
#include "weft/autograd/recurrence.h"
#include "weft/models/language_model.h"
#include "weft/ops/elementwise.h"
#include "weft/trainers/reference.h"

namespace weft {
namespace {

double max_difference(const Tensor& a, const Tensor& b) {
  const auto x = a.to_vector<double>(), y = b.to_vector<double>();
  EXPECT_EQ(x.size(), y.size());
  double most = 0;
  for (size_t i = 0; i < std::min(x.size(), y.size()); ++i) most = std::max(most, std::abs(x[i] - y[i]));
  return most;
}

Tensor random(const Shape& shape, uint64_t seed, double std = 1) {
  return cast(Var(normal_init(shape, Rng(seed), std)), kF64).value();
}

MixerArgs args_of_layer(int64_t layer) {
  return {.dim = 16, .context = 16, .layer = layer, .layers = 4, .std = 0.4, .out_std = 0.4};
}

std::unique_ptr<Mixer> made(const MixerMaker& make, int64_t layer, uint64_t seed) {
  std::unique_ptr<Mixer> mixer = make(args_of_layer(layer), Rng(seed));
  mixer->set_compute(kF64);
  return mixer;
}

std::map<std::string, Param*> params_of(const Mixer& mixer) {
  std::map<std::string, Param*> all;
  for (const NamedParam& p : mixer.params()) all[p.name] = p.param;
  return all;
}

TokenData two_documents(int32_t first = 8, int32_t second = 5) {  // tokens of each
  const int32_t num_tokens = first + second;
  TokenData data = plain_tokens(1, num_tokens);
  std::vector<int32_t> documents, positions;
  for (int32_t t = 0; t < num_tokens; ++t)
    documents.push_back(t >= first), positions.push_back(t < first ? t : t - first);
  data.documents = Tensor::from(std::span<const int32_t>(documents), {1, num_tokens});
  data.document_positions = Tensor::from(std::span<const int32_t>(positions), {1, num_tokens});
  return data;
}

constexpr HySparseOptions kSchedule{.heads = 4, .kv_heads = 2, .sparse = 2, .block = 3, .blocks = 2, .window = 2};

// The full layer's keys and choice in a sparse layer: what a layer gives that computes them itself from the same projections.
TEST(HySparse, SparseLayersReadTheKeysAndBlocksOfTheFullOne) {
  HySparseOptions alone = kSchedule;
  alone.sparse = 0;
  const auto full = made(kSchedule, 0, 1), sparse = made(kSchedule, 2, 2), own = made(alone, 0, 3);
  auto from_full = params_of(*full), from_sparse = params_of(*sparse), into = params_of(*own);
  EXPECT_EQ(from_full.size(), 4u);
  EXPECT_EQ(from_sparse.size(), 5u);
  from_sparse.at("q.weight")->set_value(from_full.at("q.weight")->value());  // the same choice
  for (const auto& [name, param] : from_sparse) into.at(name)->set_value(param->value());
  into.at("block_k.weight")->set_value(from_full.at("k.weight")->value());
  into.at("block_v.weight")->set_value(from_full.at("v.weight")->value());
  const Tensor x = random({1, 13, 16}, 4);
  Tokens tokens(two_documents()), others(two_documents());
  full->forward(x, tokens);
  EXPECT_LT(max_difference(sparse->forward(x, tokens).value(), own->forward(x, others).value()), 1e-13);
}

TEST(HySparse, WithAllBlocksIsAttention) {
  HySparseOptions alone = kSchedule;
  alone.sparse = 0, alone.blocks = 99;
  const auto mixer = made(alone, 0, 3);
  auto p = params_of(*mixer);
  const Tensor x = random({2, 11, 16}, 4);
  Tokens tokens(plain_tokens(2, 11)), others(plain_tokens(2, 11));
  auto heads = [&](const char* name, int64_t count, bool rotates) {
    Var y = split_heads(linear(x, cast(Var(*p.at(name)), kF64)), count);
    return rotates ? rotary(y, others.rotary_table(4, *args_of_layer(0).rotary)) : y;
  };
  Var q = heads("q.weight", 4, true), gates = sigmoid(linear(x, cast(Var(*p.at("gates.weight")), kF64)));
  Var far = others.attend(q, heads("block_k.weight", 2, true), heads("block_v.weight", 2, false))[0];
  Var near = others.attend(q, heads("k.weight", 2, true), heads("v.weight", 2, false), {.mask = {.window = 2}})[0];
  Var sum = far * unsqueeze(slice(gates, -1, 0, 4), -1) + near * unsqueeze(slice(gates, -1, 4, 8), -1);
  Var expected = linear(merge_heads(sum), cast(Var(*p.at("out.weight")), kF64));
  EXPECT_LT(max_difference(mixer->forward(x, tokens).value(), expected.value()), 1e-13);
}

Tensor ids(int64_t batch, int64_t tokens) {
  Tensor out = Tensor::empty({batch, tokens}, kI32, Device::cpu());
  for (int64_t i = 0; i < batch * tokens; ++i)
    out.mutable_data<int32_t>()[i] = static_cast<int32_t>(Rng(5).below(11, static_cast<uint64_t>(i)));
  return out;
}

std::unique_ptr<LanguageModel> model_of(const MixerMaker& first, const MixerMaker& others, int64_t layers) {
  std::vector<int> pattern(static_cast<size_t>(layers), 1);
  pattern[0] = 0;
  auto model = std::make_unique<LanguageModel>(LanguageModelOptions{.vocab = 11,
                                                                    .dim = 16,
                                                                    .layers = layers,
                                                                    .context = 24,
                                                                    .mixers = {first, others},
                                                                    .pattern = pattern,
                                                                    .ffn = {.hidden = 24},
                                                                    .std = 0.3},
                                               Rng(2));
  model->set_compute(kF64);
  return model;
}

// Both branches are trained, and the keys of the full layer have the gradients of all three layers.
TEST(HySparse, GradientsOfAScheduleEqualDifferences) {
  for (auto recompute : {Recompute::none, Recompute::blocks}) {
    LanguageModelOptions options{
        .vocab = 11, .dim = 16, .layers = 3, .context = 24, .mixers = {kSchedule}, .ffn = {.hidden = 24}, .std = 0.3};
    options.recompute = recompute;
    LanguageModel model(options, Rng(2));
    model.set_compute(kF64);
    std::vector<Var*> variables;
    GradientCheckOptions check{.max_elements = 4};
    for (const NamedParam& p : model.params()) {
      if (p.name.find("mixer.") == std::string::npos) continue;
      variables.push_back(&p.param->var());
      check.names.push_back(p.name);
    }
    const Tensor input = ids(1, 13);
    std::unique_ptr<Tokens> tokens;  // a recomputed forward reads it in backward
    auto loss = [&](std::span<const Var>) {
      tokens = std::make_unique<Tokens>(two_documents(), TokensOptions{.is_training = true});
      return model.loss(input, input, *tokens, 0.1).loss;
    };
    const GradientCheck result = check_gradients(loss, {}, variables, check);
    EXPECT_TRUE(result.passed) << result.report;
  }
}

// A sparse layer keeps what a layer of a window keeps, the full layer the keys and values of all tokens.
TEST(HySparse, OnlyTheFullLayerKeepsKeysOfAllTokens) {
  const SoftmaxOptions full{.heads = 4, .kv_heads = 2}, window{.heads = 4, .kv_heads = 2, .window = 2};
  const auto schedule = model_of(kSchedule, kSchedule, 3), windows = model_of(full, window, 3);
  const Tensor all = ids(1, 13);
  Tokens parallel(plain_tokens(1, 13));
  const Tensor expected = schedule->logits(all, parallel);
  const auto cache = make_cache(1, 24), others = make_cache(1, 24);
  const std::vector<int32_t> text = all.to_vector<int32_t>();
  for (int64_t t = 0; t < 13; ++t) {
    Tokens tokens(plain_tokens(1, 1, t), {.cache = cache}), beside(plain_tokens(1, 1, t), {.cache = others});
    const Tensor here = Tensor::from(std::span(text).subspan(static_cast<size_t>(t), 1), {1, 1});
    EXPECT_LT(max_difference(schedule->logits(here, tokens), expected.slice(1, t, t + 1)), 1e-10) << t;
    windows->logits(here, beside);
    EXPECT_EQ(cached_bytes(*cache), cached_bytes(*others)) << t;
  }
}

TEST(HySparse, ASparseLayerWithoutAFullOneIsAnError) {
  const auto sparse = made(kSchedule, 1, 2);
  Tokens tokens(plain_tokens(1, 4));
  EXPECT_THROW(sparse->forward(random({1, 4, 16}, 1), tokens), Error);
}

struct ChunkInputs {
  Tensor q = random({2, 11, 2, 3}, 1), k = random({2, 11, 2, 3}, 2, 0.4), v = random({2, 11, 2, 4}, 3);
  Tensor decay = (cast(-abs(Var(random({2, 11, 2}, 4, 0.3))), kF64)).value(),
         beta = sigmoid(Var(random({2, 11, 2}, 5))).value(), keeps = sigmoid(Var(random({2, 11, 2}, 6))).value();
};

Var run(std::span<const Var> in, int64_t chunk, const Var& keeps) {
  Tokens tokens(plain_tokens(2, 11));
  return tokens.recur_chunks({.q_BTGK = in[0], .k_BTGK = in[1], .v_BTHV = in[2], .log_decay = in[3], .beta = in[4]}, {},
                             keeps, chunk);
}

TEST(RecurChunks, ThatAreAllKeptAreTheRecurrence) {
  const ChunkInputs c;
  const Var in[] = {c.q, c.k, c.v, c.decay, c.beta};
  const Var all = Tensor::full({2, 11, 2}, 1, kF64), none = Tensor::zeros({2, 11, 2}, kF64);
  Tokens tokens(plain_tokens(2, 11));
  const Tensor expected =
      tokens.recur({.q_BTGK = in[0], .k_BTGK = in[1], .v_BTHV = in[2], .log_decay = in[3], .beta = in[4]}).value();
  for (int64_t chunk : {1, 4, 11, 64}) EXPECT_LT(max_difference(run(in, chunk, all).value(), expected), 1e-13);
  // Nothing kept: each chunk by itself.
  EXPECT_LT(max_difference(run(in, 64, none).value(), expected), 1e-13);
  EXPECT_GT(max_difference(run(in, 4, none).value(), expected), 1e-3);
}

TEST(RecurChunks, GradientsEqualDifferences) {
  const ChunkInputs c;
  const Tensor inputs[] = {c.q, c.k, c.v, c.decay, c.beta, c.keeps};
  const Tensor weight = random({2, 11, 2, 4}, 9);
  auto f = [&](std::span<const Var> in) { return sum_all(run(in, 4, in[5]) * Var(weight)); };
  const GradientCheck result =
      check_gradients(f, inputs, {}, {.max_elements = 12, .names = {"q", "k", "v", "decay", "beta", "keeps"}});
  EXPECT_TRUE(result.passed) << result.report;
}

TEST(RecurChunks, RefusesWhatItCannotDo) {
  const ChunkInputs c;
  const Var in[] = {c.q, c.k, c.v, c.decay, c.beta};
  EXPECT_THROW(run(in, 0, c.keeps), Error);
  EXPECT_THROW(run(in, 4, c.q), Error);
}

// All parameters but those that choose, which change nothing by a small step.
TEST(HybridChoice, GradientsBesideTheChoiceEqualDifferences) {
  const std::vector<MixerMaker> makers{NatsOptions{.heads = 4, .kv_heads = 2, .window = 2},
                                       NatsLinearOptions{.heads = 2, .chunk = 3, .kernel = 2}};
  for (const MixerMaker& make : makers) {
    const auto mixer = made(make, 1, 3);
    std::vector<Var*> variables;
    GradientCheckOptions check{.max_elements = 6};
    for (const NamedParam& p : mixer->params()) {
      if (p.name.starts_with("type")) continue;
      variables.push_back(&p.param->var());
      check.names.push_back(p.name);
    }
    const Tensor x = random({2, 9, 16}, 8), weight = random({2, 9, 16}, 9);
    auto loss = [&](std::span<const Var>) {
      Tokens tokens(plain_tokens(2, 9), {.is_training = true, .rng = Rng(3)});
      return sum_all(mixer->forward(x, tokens) * Var(weight));
    };
    const GradientCheck result = check_gradients(loss, {}, variables, check);
    EXPECT_TRUE(result.passed) << result.report;
  }
}

// Rng::uniform() gives multiples of 2^-24, with both ends of these. -log(-log u) of a number beside 1 is minus the log of its distance to 1.
TEST(HybridChoice, GumbelNoiseIsFinite) {
  EXPECT_NEAR(hybrid::gumbel(1 - 0x1p-24f), 25 * std::log(2.0), 1e-5);
  EXPECT_NEAR(hybrid::gumbel(0.0f), -std::log(25 * std::log(2.0)), 1e-6);
}

// A choice c has the gradient of softmax(l) at the logits l: d/dl of sum c w.
TEST(HybridChoice, OneHotHasTheGradientOfSoftmax) {
  Var logits = variable(random({2, 3}, 1)), soft = variable(random({2, 3}, 1));
  const Var weight = random({2, 3}, 2);
  Var hard = hybrid::one_hot(logits);
  for (double c : hard.value().to_vector<double>()) EXPECT_TRUE(c == 0 || c == 1);
  backward(sum_all(hard * weight));
  backward(sum_all(softmax(soft) * weight));
  EXPECT_LT(max_difference(logits.grad(), soft.grad()), 1e-15);
}

// The gradient of NAtS's types: that of the weights when the chosen type of each key that is seen behind the window becomes
// 1 + softmax((l + e) / u) - softmax(l / u), at the temperature u of each progress of a training. One head, all tokens global.
TEST(HybridChoice, TypesOfNatsHaveTheGradientOfTheirShares) {
  constexpr int64_t kTokens = 6, kDim = 4;
  constexpr float kBiases[] = {1.0f, 0.5f, -0.5f};
  const MixerArgs args{.dim = kDim, .context = 8, .rotary = std::nullopt, .std = 0.6, .out_std = 0.6};
  const auto mixer =
      NatsOptions{.heads = 1, .window = 2, .temperature = 0.9, .end_temperature = 0.4, .global_bias = 9}(args, Rng(1));
  mixer->set_compute(kF64);
  auto p = params_of(*mixer);
  p.at("type_bias")->set_value(Tensor::from(std::span<const float>(kBiases), {3}));
  p.at("type.weight")->set_value(Tensor::zeros({3, kDim}));
  const Tensor x = random({1, kTokens, kDim}, 2), weight = random({1, kTokens, kDim}, 3);

  reference::Parameters parameters;
  for (const auto& [name, param] : p) parameters[name] = cast(Var(param->value()), kF64).value();
  const reference::Sequence s(x, plain_tokens(1, kTokens));
  auto of = [&](const char* name) { return reference::linear(x.to_vector<double>(), kDim, parameters, name); };
  const reference::Numbers q = of("q"), k = of("k"), v = of("v");
  auto share = [](double first, double u) {
    return std::exp(first / u) / (std::exp(first / u) + std::exp(0.5 / u) + std::exp(-0.5 / u));
  };
  auto loss = [&](double step, double u) {
    auto weights = [&](int64_t b, int64_t i, int64_t h) {
      reference::Numbers all = reference::scores(s, 1, 1, kDim, q, k, 0.5, 0, b, i, h);
      for (int64_t j = 0; j <= i - 2; ++j)
        all[static_cast<size_t>(j)] += std::log(1 + share(1 + step, u) - share(1, u));
      return reference::softmax(all);
    };
    const reference::Numbers y = reference::linear(reference::mix(s, 1, 1, kDim, v, weights), kDim, parameters, "out");
    const auto w = weight.to_vector<double>();
    double sum = 0;
    for (size_t i = 0; i < y.size(); ++i) sum += y[i] * w[i];
    return sum;
  };
  for (const auto& [progress, u] : {std::pair(0.0, 0.9), {0.5, 0.6}, {1.0, 0.4}}) {
    p.at("type_bias")->clear_grad();
    Tokens tokens(plain_tokens(1, kTokens), {.progress = progress});
    backward(sum_all(mixer->forward(x, tokens) * Var(weight)));
    const double step = 1e-5, expected = (loss(step, u) - loss(-step, u)) / (2 * step);
    EXPECT_NEAR(p.at("type_bias")->grad().to_vector<double>()[0], expected, 1e-5 * std::max(1.0, std::abs(expected)))
        << progress;
  }
}

TEST(HybridChoice, TemperaturesOfNatsAreAboveZero) {
  for (const NatsOptions& o : {NatsOptions{.temperature = 0}, NatsOptions{.end_temperature = 0}})
    EXPECT_THROW(o({.dim = 8, .context = 8}, Rng(1)), Error);
}

// The gradient of NAtS-L's types, of attention and of the state: that of the output when each chunk's type is 1 or 0 plus how far its share moves.
// 13 tokens in chunks of 3 make some chunks of either type in each head.
TEST(HybridChoice, TypesOfNatsLinearHaveTheGradientOfTheirShares) {
  const NatsLinearOptions options{.heads = 2, .chunk = 3, .kernel = 2};
  const auto mixer = made(options, 1, 3);
  auto p = params_of(*mixer);
  const Tensor x = random({1, 13, 16}, 8), weight = random({1, 13, 16}, 9);
  for (const TokenData& data : {plain_tokens(1, 13), two_documents()}) {
    p.at("type.weight")->clear_grad();
    Tokens tokens(data, {.is_training = true});
    backward(sum_all(mixer->forward(x, tokens) * Var(weight)));
    const auto grad = cast(Var(p.at("type.weight")->grad()), kF64).value().to_vector<double>();
    reference::Parameters parameters;
    for (const auto& [name, param] : p) parameters[name] = cast(Var(param->value()), kF64).value();
    const MixerArgs args = args_of_layer(1);
    reference::HybridMixer reference(args, parameters, x, data);
    const auto w = weight.to_vector<double>();
    auto loss = [&](size_t i, double step) {
      Tensor moved = ops::clone(parameters.at("type.weight"));
      moved.mutable_data<double>()[i] += step;
      reference.of_shares = parameters;
      (*reference.of_shares)["type.weight"] = moved;
      const reference::Numbers y = reference.run(options);
      double sum = 0;
      for (size_t j = 0; j < y.size(); ++j) sum += y[j] * w[j];
      return sum;
    };
    double most = 0;
    for (double g : grad) most = std::max(most, std::abs(g));
    EXPECT_GT(most, 1e-3);
    for (size_t i = 0; i < grad.size(); i += 5)
      EXPECT_NEAR(grad[i], (loss(i, 1e-5) - loss(i, -1e-5)) / 2e-5, 1e-6 * std::max(1.0, most)) << i;
  }
}

// Documents whose lengths no block divides: in one row they are what each is alone.
TEST(HybridChoice, BlocksDoNotReachAcrossDocuments) {
  constexpr int32_t kFirst = 781, kSecond = 1267;
  const std::vector<MixerMaker> makers{
      HySparseOptions{.heads = 2, .kv_heads = 1, .sparse = 0, .block = 32, .blocks = 4, .window = 16},
      NatsLinearOptions{.heads = 2, .chunk = 32, .kernel = 4}, NatsOptions{.heads = 2, .kv_heads = 1, .window = 32}};
  NoGrad no_grad;
  const Tensor x = random({1, kFirst + kSecond, 16}, 4);
  for (size_t i = 0; i < makers.size(); ++i) {
    MixerArgs args = args_of_layer(0);
    args.context = kFirst + kSecond;
    const auto mixer = makers[i](args, Rng(3));
    mixer->set_compute(kF64);
    auto run = [&](const Tensor& some, const TokenData& data) {
      Tokens tokens(data);
      return ops::contiguous(mixer->forward(some, tokens).value());
    };
    const Tensor packed = run(x, two_documents(kFirst, kSecond));
    const Tensor first = run(x.slice(1, 0, kFirst), plain_tokens(1, kFirst)),
                 second = run(x.slice(1, kFirst, kFirst + kSecond), plain_tokens(1, kSecond));
    EXPECT_LT(max_difference(packed.slice(1, 0, kFirst), first), 1e-10) << "mixer " << i;
    EXPECT_LT(max_difference(packed.slice(1, kFirst, kFirst + kSecond), second), 1e-10) << "mixer " << i;
  }
}

// Decoding keeps two states and, for the attention, keys and values of all tokens.
TEST(HybridChoice, NatsLinearDecodesWithTwoStates) {
  const auto mixer = made(NatsLinearOptions{.heads = 2, .chunk = 3, .kernel = 2}, 1, 3);
  NoGrad no_grad;
  const auto cache = make_cache(1, 16);
  int64_t before = 0;
  for (int64_t t = 0; t < 8; ++t) {
    Tokens tokens(plain_tokens(1, 1, t), {.cache = cache});
    mixer->forward(random({1, 1, 16}, static_cast<uint64_t>(t)), tokens);
    tokens.finish_decode_step();
    if (t == 2) before = cached_bytes(*cache);
  }
  EXPECT_GE(before, 2 * 2 * 6 * 12 * 8);
  EXPECT_EQ(cached_bytes(*cache), before);  // room for 16 tokens is taken at once
}

}  // namespace
}  // namespace weft
