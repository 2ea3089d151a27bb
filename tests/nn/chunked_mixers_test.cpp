// Mixers that work on chunks, windows and tiles of tokens: Miras, TLinFormer, Local Linear Attention. The conformance suite runs their rows.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/reference/mixers/compositions.h"
#include "tests/reference/mixers/miras.h"
#include "tests/reference/mixers/pair_scores.h"
#include "tests/support/errors.h"
#include "tests/support/random.h"
#include "weft/core/allocator.h"
#include "weft/nn/mixers.h"

namespace weft {
namespace {

using test::error_of;
using test::random_normal;

constexpr int64_t kDim = 8;

std::vector<double> numbers(const Var& x) { return cast(x, kF64).value().to_vector<double>(); }

struct Made {
  MixerArgs args{.dim = kDim, .context = 64, .layer = 1, .layers = 4, .std = 0.4, .out_std = 0.4};
  std::unique_ptr<Mixer> mixer;
  reference::Parameters parameters;

  explicit Made(const MixerMaker& make) : mixer(make(args, Rng(7))) {
    for (const NamedParam& p : mixer->params()) {
      p.param->set_value((Var(p.param->value()) + Var(random_normal(p.param->value().shape(), p.name)) * 0.2).value());
      parameters[p.name] = cast(Var(p.param->value()), kF64).value();
    }
    mixer->set_compute(kF64);
  }
  Var run(const Var& x, const TokenData& data, std::shared_ptr<Cache> cache = nullptr) {
    Tokens tokens(data, {.cache = std::move(cache)});
    Var y = mixer->forward(x, tokens);
    tokens.finish_decode_step();
    return y;
  }
};

template <class Reference, class Options>
void expect_reference(const Options& options, int64_t num_tokens) {
  Made made{MixerMaker(options)};
  const Tensor x = random_normal({2, num_tokens, kDim}, "x", kF64);
  const TokenData data = plain_tokens(2, num_tokens);
  const std::vector<double> got = numbers(made.run(x, data)),
                            expected = Reference(made.args, made.parameters, x, data).run(options);
  ASSERT_EQ(got.size(), expected.size());
  for (size_t i = 0; i < got.size(); ++i)
    ASSERT_NEAR(got[i], expected[i], 1e-10) << num_tokens << " tokens, number " << i;
}

TEST(Miras, EveryChunkIsItsSequentialReference) {
  for (MirasKind kind : {MirasKind::moneta, MirasKind::yaad, MirasKind::memora})
    for (int64_t chunk : {1, 2, 5, 13, 100})
      for (int64_t num_tokens : {1, 5, 13, 27})
        expect_reference<reference::MirasMixer>(MirasOptions{.kind = kind, .heads = 2, .chunk = chunk}, num_tokens);
}

// Inputs a thousand times as large: losses whose gradients grow with the error, and memories that these gradients move.
TEST(Miras, LargeInputsStayFinite) {
  for (MirasKind kind : {MirasKind::moneta, MirasKind::yaad, MirasKind::memora}) {
    auto mixer = MirasOptions{.kind = kind, .heads = 2, .chunk = 4}({.dim = kDim, .context = 64}, Rng(3));
    Var x = variable((Var(random_normal({1, 40, kDim}, "x")) * 1e3).value());
    Tokens tokens(plain_tokens(1, 40), {.is_training = true});
    Var y = mixer->forward(x, tokens);
    backward(sum_all(y));
    for (double v : numbers(y)) ASSERT_TRUE(std::isfinite(v));
    for (double v : numbers(x.grad())) ASSERT_TRUE(std::isfinite(v));
  }
}

TEST(Tlinformer, EveryScoreIsThatOfItsReference) {
  for (auto [depth, window, rows] : {std::array<int64_t, 3>{2, 4, 3}, {4, 4, 4}, {3, 3, 20}, {3, 1, 1}, {3, 64, 4}})
    for (int64_t num_tokens : {1, 4, 5, 17})
      expect_reference<reference::ComposedMixer>(
          TlinformerOptions{.heads = 2, .depth = depth, .window = window, .rows = rows, .hidden = 12}, num_tokens);
}

// The output is what the layers add to x: in bf16 it has as many digits where x is large.
TEST(Tlinformer, WhatItAddsToLargeInputsKeepsItsDigits) {
  auto made = [](DType dtype) {
    auto mixer = TlinformerOptions{.heads = 2, .depth = 3, .window = 4, .rows = 2, .hidden = 12}(
        {.dim = kDim, .context = 64, .std = 0.4, .out_std = 0.4}, Rng(7));
    mixer->set_compute(dtype);
    return mixer;
  };
  const Var x = cast(Var(random_normal({1, 17, kDim}, "x")) * 100.0, kBF16);
  Tokens tokens(plain_tokens(1, 17)), others(plain_tokens(1, 17));
  const std::vector<double> got = numbers(made(kBF16)->forward(x, tokens)),
                            expected = numbers(made(kF64)->forward(cast(x, kF64), others));
  double off = 0, size = 0;
  for (size_t i = 0; i < got.size(); ++i) off += std::pow(got[i] - expected[i], 2), size += std::pow(expected[i], 2);
  EXPECT_LT(std::sqrt(off / size), 0.03);
}

TEST(Tlinformer, EveryOutputReachesTheWholeHistory) {
  constexpr int64_t kTokens = 14;
  Made made{TlinformerOptions{.heads = 2, .depth = 3, .window = 4, .rows = 2, .hidden = 12}};
  const Tensor x = random_normal({1, kTokens, kDim}, "x", kF64);
  for (int64_t t = 0; t < kTokens; ++t) {
    Var in = variable(x);
    Var y = made.run(in, plain_tokens(1, kTokens));
    backward(sum_all(slice(y, 1, t, t + 1)));
    const std::vector<double> dx = numbers(in.grad());
    for (int64_t s = 0; s < kTokens; ++s) {
      double size = 0;
      for (int64_t c = 0; c < kDim; ++c) size += std::abs(dx[static_cast<size_t>(s * kDim + c)]);
      if (s <= t) EXPECT_GT(size, 1e-9) << "token " << t << " of token " << s;
      else EXPECT_EQ(size, 0) << "token " << t << " of token " << s;
    }
  }
}

// Beyond a few windows only the first layer's keys, values and inputs grow, whatever the depth.
TEST(Tlinformer, TheCacheGrowsByItsFirstLayerAlone) {
  NoGrad no_grad;
  constexpr int64_t kLong = 64, kWindow = 4;
  std::vector<int64_t> of_depths;
  for (int64_t depth : {2, 5}) {
    Made made{TlinformerOptions{.heads = 2, .depth = depth, .window = kWindow, .rows = 3, .hidden = 12}};
    const Tensor x = random_normal({1, kLong, kDim}, "x", kF64);
    const std::vector<double> expected = numbers(made.run(x, plain_tokens(1, kLong)));
    auto cache = make_cache(1, kLong);
    std::vector<Var> parts;
    for (int64_t t = 0; t < kLong; ++t) parts.push_back(made.run(x.slice(1, t, t + 1), plain_tokens(1, 1, t), cache));
    const std::vector<double> got = numbers(concatenate(parts, 1));
    for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], expected[i], 1e-10);
    of_depths.push_back(cached_bytes(*cache));
  }
  const int64_t of_layer = (of_depths[1] - of_depths[0]) / 3;  // a hidden one: keys and values of about a window
  EXPECT_GT(of_layer, 0);
  EXPECT_LE(of_layer, 3 * kWindow * 2 * kDim * 8);
  EXPECT_LE(of_depths[0] - of_layer, 2 * kLong * 3 * kDim * 8);
}

TEST(LocalLinear, IsItsCholeskyReferenceAcrossTiles) {
  expect_reference<reference::PairMixer>(LocalLinearOptions{.heads = 2}, 140);
}

// exp(sqrt(K)) is 1e12 and 8e13 here, and every token finds itself: gradients of f32 are those of f64.
void expect_digits_of_inputs(int64_t width) {
  auto mixer = LocalLinearOptions{.heads = 1, .head_dim = width}({.dim = kDim, .context = 64, .std = 0.4}, Rng(3));
  auto param = [&](const char* name) {
    for (const NamedParam& p : mixer->params())
      if (p.name == name) return p.param;
    return static_cast<Param*>(nullptr);
  };
  param("k.weight")->set_value(param("q.weight")->value());
  auto run = [&](DType dtype) {
    mixer->set_compute(dtype);
    Tokens tokens(plain_tokens(1, 12), {.is_training = true});
    Var x = variable(cast(Var(random_normal({1, 12, kDim}, "x")), dtype).value()), y = mixer->forward(x, tokens);
    backward(sum_all(y * cast(Var(random_normal({1, 12, kDim}, "dy")), dtype)));
    return std::pair(numbers(y), numbers(x.grad()));
  };
  const auto [y, dx] = run(kF32);
  const auto [expected, dexpected] = run(kF64);
  auto largest = [](const std::vector<double>& all) {
    double most = 0;
    for (double v : all) most = std::max(most, std::abs(v));
    return most;
  };
  for (size_t i = 0; i < y.size(); ++i) {
    EXPECT_NEAR(y[i], expected[i], 1e-4 * largest(expected));
    EXPECT_NEAR(dx[i], dexpected[i], 1e-3 * largest(dexpected));
  }
}

TEST(LocalLinear, OfWideHeadsHasTheDigitsOfItsInputs) {
  for (int64_t width : {768, 1024}) expect_digits_of_inputs(width);
}

// Where chunks and windows may be far longer than a row, no room is taken for what does not occur.
TEST(ChunkedMixers, TakeRoomForTheTokensThatAreThere) {
  constexpr int64_t kMost = int64_t{1} << 30;
  for (const MixerMaker& make : {MixerMaker(MirasOptions{.heads = 2, .chunk = kMost}),
                                 MixerMaker(TlinformerOptions{.heads = 2, .window = kMost, .rows = 4, .hidden = 12})}) {
    Made made{make};
    NoGrad no_grad;
    const int64_t before = allocator(Device::cpu()).stats().current_bytes;
    allocator(Device::cpu()).reset_peak();
    made.run(random_normal({2, 17, kDim}, "x", kF64), plain_tokens(2, 17));
    EXPECT_LT(allocator(Device::cpu()).stats().peak_bytes - before, 1 << 20);
  }
}

TEST(ChunkedMixers, RefuseLengthsThatPositionsDoNotHold) {
  for (int64_t length : {(int64_t{1} << 30) + 1, int64_t{1} << 32})
    for (const auto& [make, what] :
         {std::pair(MixerMaker(MirasOptions{.heads = 2, .chunk = length}), "miras: chunk"),
          std::pair(MixerMaker(TlinformerOptions{.heads = 2, .window = length}), "tlinformer: window"),
          std::pair(MixerMaker(NatsOptions{.heads = 2, .window = length}), "nats: window")})
      EXPECT_EQ(error_of([&] { make({.dim = kDim, .context = 64}, Rng(1)); }, {what, str(length), "1073741824"}), "");
}

TEST(LocalLinear, OfAnEndlessRidgeIsSoftmaxAttention) {
  Made local{LocalLinearOptions{.heads = 2}}, plain{SoftmaxOptions{.heads = 2, .qk_norm = QkNorm::rms}};
  for (const NamedParam& p : plain.mixer->params())
    if (p.name.find("norm") != std::string::npos) p.param->set_value(Tensor::full(p.param->value().shape(), 1));
  for (const NamedParam& p : local.mixer->params()) {
    if (p.name == "ridge") p.param->set_value(Tensor::full({2}, 1e9));
    for (const NamedParam& other : plain.mixer->params())
      if (other.name == p.name) other.param->set_value(p.param->value());
  }
  const Tensor x = random_normal({2, 11, kDim}, "x", kF64);
  const std::vector<double> a = numbers(local.run(x, plain_tokens(2, 11))),
                            b = numbers(plain.run(x, plain_tokens(2, 11)));
  for (size_t i = 0; i < a.size(); ++i) EXPECT_NEAR(a[i], b[i], 1e-6);
}

}  // namespace
}  // namespace weft
