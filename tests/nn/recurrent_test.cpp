// Recurrences as layers see them in decoding.
#include <gtest/gtest.h>

#include <functional>

#include "tests/support/errors.h"
#include "tests/support/random.h"
#include "weft/autograd/recurrence.h"
#include "weft/nn/tokens.h"

namespace weft {
namespace {

using test::error_of;
using test::random_normal;

constexpr int64_t kBatch = 2, kTokens = 13, kHeads = 2, kWidth = 4;

// Rows of documents that begin every 5 and every 4 tokens. Where `is_padding` says so a token is padding, and the next one has its position.
TokenData packed(int64_t batch, int64_t num_tokens, const std::function<bool(int64_t b, int64_t t)>& is_padding) {
  std::vector<int32_t> positions, documents;
  for (int64_t b = 0; b < batch; ++b)
    for (int32_t t = 0, position = 0; t < num_tokens; ++t) {
      const bool is_pad = is_padding(b, t);
      positions.push_back(position);
      documents.push_back(is_pad ? -1 : position / (5 - static_cast<int32_t>(b)));
      position += is_pad ? 0 : 1;
    }
  return {.positions = Tensor::from(std::span<const int32_t>(positions), {batch, num_tokens}),
          .documents = Tensor::from(std::span<const int32_t>(documents), {batch, num_tokens})};
}

TokenData part_of(const TokenData& all, int64_t begin, int64_t end) {
  auto part = [&](const Tensor& t) {
    return t.defined() ? cast(cast(Var(t.slice(1, begin, end)), kF64), kI32).value() : t;
  };
  return {.positions = part(all.positions), .documents = part(all.documents)};
}

struct Layers {
  Var q, k, v, g, beta;
  explicit Layers(const Var& x_BTD) {
    const int64_t B = x_BTD.size(0), T = x_BTD.size(1);
    q = reshape(x_BTD, {B, T, kHeads, kWidth});
    k = sin(q), v = cos(q * 2.0), g = log_sigmoid(q + 1.0), beta = sigmoid(sum(q, -1));
  }
};

// What both recurrences return for x, one beside the other.
Var both(Tokens& tokens, const Var& x_BTD) {
  const Layers l(x_BTD);
  Var delta = tokens.recur({.q_BTGK = l.q, .k_BTGK = l.k * 0.5, .v_BTHV = l.v, .log_decay = l.g, .beta = l.beta});
  const Var parts[] = {reshape(delta, x_BTD.shape()), tokens.decay_scan(x_BTD, reshape(l.g, x_BTD.shape()))};
  return concatenate(parts, -1);
}

std::vector<double> numbers(const Var& x) { return cast(x, kF64).value().to_vector<double>(); }

TEST(Recurrent, DecodesInStepsOfAnySize) {
  NoGrad no_grad;
  const Tensor x = random_normal({kBatch, kTokens, kHeads * kWidth}, "x", kF64);
  for (int64_t step : {1, 2, 5, 13})
    for (bool has_documents : {false, true}) {
      // In a step padding is last: in row 0 of every second one, in row 1 of the first.
      auto is_padding = [&](int64_t b, int64_t t) {
        const bool is_last = (t + 1) % step == 0 || t + 1 == kTokens;
        return is_last && (b == 0 ? t / step % 2 == 1 : t < step);
      };
      const TokenData data = has_documents ? packed(kBatch, kTokens, is_padding) : plain_tokens(kBatch, kTokens);
      Tokens all(data);
      const std::vector<double> expected = numbers(both(all, x));
      auto cache = make_cache(kBatch, kTokens);
      std::vector<Var> parts;
      int64_t bytes = 0;
      for (int64_t begin = 0; begin < kTokens; begin += step) {
        const int64_t end = std::min(begin + step, kTokens);
        Tokens some(part_of(data, begin, end), {.cache = cache});
        parts.push_back(both(some, x.slice(1, begin, end)));
        some.finish_decode_step();
        if (begin == 0) bytes = cached_bytes(*cache);
      }
      EXPECT_EQ(cached_bytes(*cache), bytes) << "the state does not grow";
      EXPECT_EQ(bytes, kBatch * 8 * (kHeads * kWidth * kWidth + kHeads * kWidth));
      const std::vector<double> got = numbers(concatenate(parts, 1));
      for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], expected[i], 1e-12) << step << ", number " << i;
    }
}

TEST(Recurrent, RefusesWhatIsTheTokensBusiness) {
  Tokens tokens(plain_tokens(1, 3));
  Var x = random_normal({1, 3, 1, 2}, "x");
  RecurrenceVars in{.q_BTGK = x, .k_BTGK = x, .v_BTHV = x, .state = Tensor::zeros({1, 1, 2, 2})};
  EXPECT_EQ(error_of([&] { tokens.recur(in); }, {"recur: a state or documents of the caller's", "leave them out"}), "");
  in.state = {}, in.v_BTHV = random_normal({1, 2, 1, 2}, "v");
  EXPECT_EQ(error_of([&] { tokens.recur(in); }, {"recur: values are", "[1, 2, 1, 2]", "the tokens are [1, 3]"}), "");
  EXPECT_EQ(error_of(
                [&] {
                  tokens.decay_scan(random_normal({1, 2, 4}, "y"), Tensor::zeros({4}));
                },
                {"decay_scan: values are", "the tokens are [1, 3]"}),
            "");
}

}  // namespace
}  // namespace weft
