// Biases of scores in Tokens, and what is made of them: sinks, slopes of distance, masks that the tokens make.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/reference/attention.h"
#include "tests/support/random.h"
#include "weft/nn/tokens.h"

namespace weft {
namespace {

using test::random_normal;

constexpr int64_t B = 2, T = 11, H = 4, G = 2, K = 8;

struct Parts {
  Var q = random_normal({B, T, H, K}, "q", kF64), k = random_normal({B, T, G, K}, "k", kF64),
      v = random_normal({B, T, G, K}, "v", kF64);
  AttentionBias bias{.query = random_normal({B, T, H}, "query bias", kF64),
                     .key = random_normal({B, T, G}, "key bias", kF64)};
};

void expect_near(const Var& got, const Var& want, double tolerance) {
  auto a = got.value().to_vector<double>(), b = want.value().to_vector<double>();
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) ASSERT_NEAR(a[i], b[i], tolerance) << i;
}

TEST(TokensBias, OfKeysIsKeptInDecoding) {
  Parts p;
  NoGrad no_grad;
  for (auto normaliser : {ops::Normaliser::softmax, ops::Normaliser::sum, ops::Normaliser::signed_softmax}) {
    const ops::AttentionOptions options{.mask = {.window = 6}, .normaliser = normaliser};
    Tokens whole(plain_tokens(B, T));
    const Var want = whole.attend(p.q, p.k, p.v, options, {}, p.bias)[0];
    auto cache = make_cache(B, T);
    std::vector<Var> parts;
    int64_t begin = 0;
    for (int64_t count : {4, 1, 1, 3, 2}) {
      Tokens some(plain_tokens(B, count, begin), {.cache = cache});
      auto of = [&](const Var& x) { return slice(x, 1, begin, begin + count); };
      parts.push_back(
          some.attend(of(p.q), of(p.k), of(p.v), options, {}, {.query = of(p.bias.query), .key = of(p.bias.key)})[0]);
      some.finish_decode_step();
      begin += count;
    }
    expect_near(concatenate(parts, 1), want, 1e-12);
  }
}

// As a mixer under bf16 makes them: taken as they are.
TEST(TokensBias, OfBf16IsTakenExactly) {
  Parts p;
  for (Var* x : {&p.q, &p.k, &p.v}) *x = cast(*x, kBF16);
  std::vector<Var> outs, grads;
  for (DType dtype : {kBF16, kF32}) {
    Var query = variable(cast(cast(p.bias.query, kBF16), dtype).value()),
        key = variable(cast(cast(p.bias.key, kBF16), dtype).value());
    Tokens tokens(plain_tokens(B, T));
    outs.push_back(cast(tokens.attend(p.q, p.k, p.v, {}, {}, {.query = query, .key = key})[0], kF64));
    backward(sum_all(square(outs.back())));
    for (const Var& x : {query, key}) grads.push_back(cast(cast(Var(x.grad()), kBF16), kF64));
  }
  expect_near(outs[0], outs[1], 0);
  expect_near(grads[0], grads[2], 0);
  expect_near(grads[1], grads[3], 0);
}

// Signed weights have the sizes |q.k - slope distance + biases|.
TEST(TokensBias, IsInTheStatisticsOfSignedWeights) {
  Parts p;
  NoGrad no_grad;
  Tokens tokens(plain_tokens(B, T));
  ops::AttentionOptions options{.normaliser = ops::Normaliser::sum};
  options.score = {.alibi_slopes = Tensor::from<float>({0.5, 0.25, 0.125, 1}, {H}),
                   .query_bias = p.bias.query.value(),
                   .key_bias = p.bias.key.value(),
                   .shift = 0.3};
  const ops::AttentionTokens all{plain_tokens(B, T).positions};
  const reference::AttentionReference want(p.q.value(), p.k.value(), p.v.value(), all, all, options);
  const auto mass = tokens.statistics(p.q, p.k, {}, options).column_mass.to_vector<float>();
  ASSERT_EQ(mass.size(), want.mass.size());
  for (size_t i = 0; i < mass.size(); ++i) EXPECT_NEAR(static_cast<double>(mass[i]), want.mass[i], 1e-5) << i;
}

TEST(TokensBias, OfQuerySetsAndKeySetsIsInTheStatistics) {
  Parts p;
  NoGrad no_grad;
  Tokens tokens(plain_tokens(B, T));
  const QuerySet queries = tokens.queries(p.q, p.bias.query);
  const KeySet keys = tokens.keys(p.k, p.v, {.bias = p.bias.key});
  for (auto normaliser : {ops::Normaliser::softmax, ops::Normaliser::sum}) {
    const ops::AttentionOptions options{.normaliser = normaliser};
    ops::AttentionOptions with_bias = options;
    with_bias.score.query_bias = p.bias.query.value(), with_bias.score.key_bias = p.bias.key.value();
    const ops::AttentionTokens all{plain_tokens(B, T).positions};
    const reference::AttentionReference want(p.q.value(), p.k.value(), p.v.value(), all, all, with_bias);
    const auto mass = tokens.statistics(queries, keys, {}, options).column_mass.to_vector<float>();
    ASSERT_EQ(mass.size(), want.mass.size());
    for (size_t i = 0; i < mass.size(); ++i) EXPECT_NEAR(static_cast<double>(mass[i]), want.mass[i], 1e-5) << i;
  }
}

TEST(TokensBias, OfKeysGoesWithTheGroupsAndRowsOfAKeySet) {
  Parts p;
  NoGrad no_grad;
  Tokens tokens(plain_tokens(B, T));
  const KeySet keys = tokens.keys(p.k, p.v, {.bias = p.bias.key});
  const Var whole = tokens.attend_part(tokens.queries(p.q), keys, {})[0];
  const std::vector<KeySet> groups = keys.groups(), rows = keys.rows();
  for (int64_t g = 0; g < G; ++g) {
    auto heads = [&](const Var& x) { return slice(x, 2, g * H / G, (g + 1) * H / G); };
    expect_near(tokens.attend_part(tokens.queries(heads(p.q)), groups[static_cast<size_t>(g)], {})[0], heads(whole),
                1e-12);
  }
  const std::vector<int32_t> which{2, 5, 10};
  for (int64_t b = 0; b < B; ++b) {
    std::vector<Var> q, want;
    for (int32_t i : which) {
      q.push_back(slice(slice(p.q, 0, b, b + 1), 1, i, i + 1));
      want.push_back(slice(slice(whole, 0, b, b + 1), 1, i, i + 1));
    }
    expect_near(tokens.attend_part(tokens.queries(concatenate(q, 1), b, which), rows[static_cast<size_t>(b)], {})[0],
                concatenate(want, 1), 1e-12);
  }
}

// A key and a value of zeros with the bias b: softmax with e^b in its sum.
TEST(AttentionBias, OfAnEmptyKeyIsALearnedSink) {
  Parts p;
  Var b = variable(random_normal({H}, "sink", kF64));
  const ops::AttentionTokens queries{plain_tokens(B, T, 1).positions}, keys{plain_tokens(B, T + 1).positions};
  auto with_empty = [&](const Var& x) {
    const Var parts[] = {Tensor::zeros({B, 1, x.size(2), K}, kF64), x};
    return concatenate(parts, 1);
  };
  Tensor place = Tensor::zeros({1, T + 1, 1}, kF64);
  place.mutable_data<double>()[0] = 1;
  const Var sunk = attend(p.q, with_empty(p.k), with_empty(p.v), queries, keys, {},
                          {.key = expand(Var(place) * b, {B, T + 1, H})})[0];
  const auto [out, lse] = attend(p.q, p.k, p.v, queries, queries, {});
  const Var want = out * unsqueeze(sigmoid(lse - b), -1);
  expect_near(sunk, want, 1e-12);
  auto gradient_of = [&](const Var& out) {
    b.set_grad({});
    backward(out, random_normal({B, T, H, K}, "dout", kF64));
    return b.grad();
  };
  expect_near(gradient_of(sunk), gradient_of(want), 1e-12);
}

TEST(AttentionBias, OfPositionsTimesSlopesIsAlibi) {
  Parts p;
  Tokens tokens(plain_tokens(B, T, 5));
  const Tensor slopes = Tensor::from<float>({0.5, 0.25, 0.125, 1}, {H});
  const Var rises = unsqueeze(cast(Var(tokens.positions()), kF64), -1) * cast(Var(slopes), kF64);
  const Var got = tokens.attend(p.q, p.k, p.v, {}, {}, {.query = -rises, .key = rises})[0];
  expect_near(got, tokens.attend(p.q, p.k, p.v, {.score = {.alibi_slopes = slopes}})[0], 1e-12);
}

// A mask that the tokens make: a token with a mark is not seen by later ones.
TEST(AttentionBias, OfMinusInfinityIsAMaskPerKey) {
  Parts p;
  Tokens tokens(plain_tokens(B, T));
  Tensor marks = Tensor::zeros({B, T, G}, kF64), other = (p.v * 1.0).value();
  for (int64_t b = 0; b < B; ++b)
    for (int64_t g = 0; g < G; ++g) {
      marks.mutable_data<double>()[(b * T + 4) * G + g] = -INFINITY;
      for (int64_t c = 0; c < K; ++c) other.mutable_data<double>()[((b * T + 4) * G + g) * K + c] = 1e6;
    }
  const Var out = tokens.attend(p.q, p.k, p.v, {}, {}, {.key = marks})[0];
  expect_near(tokens.attend(p.q, p.k, other, {}, {}, {.key = marks})[0], out, 0);
  const ops::AttentionTokens all{tokens.positions()};
  auto without = [](const Var& x) {
    const Var parts[] = {slice(x, 1, 0, 4), slice(x, 1, 5, T)};
    return concatenate(parts, 1);
  };
  const ops::AttentionTokens kept{without(tokens.positions()).value()};
  expect_near(out, attend(p.q, without(p.k), without(p.v), all, kept, {})[0], 1e-12);
}

}  // namespace
}  // namespace weft
