// Attention with a mask and a score of one's own, through Tokens: equal to plain loops, decoded, in documents, with gradients.
#include "weft/nn/attend_with.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/support/errors.h"
#include "tests/support/random.h"
#include "weft/autograd/gradient_check.h"

namespace weft {
namespace {

using test::random_normal;

// Even heads see keys at even distances, odd heads the others.
struct Dilated {
  template <class I>
  auto keep(int64_t, int64_t head, ops::Token<I> q, ops::Token<I> k) const {
    return ((q.position - k.position + static_cast<int32_t>(head)) & 1) == 0;
  }
  ops::Cover cover(int64_t, int64_t, ops::TokenRange, ops::TokenRange) const { return ops::Cover::partial; }
};

// s / (1 + |s| / cap): a soft cap without exponentials.
struct SoftSign {
  template <std::floating_point T>
  T value(T s, int64_t, int64_t, ops::Token<int32_t>, ops::Token<int32_t>) const {
    return s / (1 + std::abs(s) / T(cap));
  }
  template <std::floating_point T>
  T slope(T s, int64_t, int64_t, ops::Token<int32_t>, ops::Token<int32_t>) const {
    const T below = 1 + std::abs(s) / T(cap);
    return 1 / (below * below);
  }
  double cap = 8;
};

constexpr int64_t B = 2, T = 11, H = 4, G = 2, K = 8, kFirst = 4;  // the first document has kFirst tokens

TokenData two_documents() {
  TokenData data = plain_tokens(B, T);
  data.documents = Tensor::empty({B, T}, kI32, Device::cpu());
  for (int64_t i = 0; i < B * T; ++i) data.documents.mutable_data<int32_t>()[i] = i % T < kFirst ? 0 : 1;
  return data;
}

// Plain loops on q [B, T, H, K], k and v [B, T, G, K].
std::vector<double> plain_loops(const Tensor& q, const Tensor& k, const Tensor& v, bool has_documents) {
  auto at = [](const Tensor& x, int64_t b, int64_t t, int64_t h, int64_t c) {
    return x.data<double>()[((b * x.size(1) + t) * x.size(2) + h) * x.size(3) + c];
  };
  std::vector<double> out;
  for (int64_t b = 0; b < B; ++b)
    for (int64_t i = 0; i < T; ++i)
      for (int64_t h = 0; h < H; ++h) {
        std::vector<double> y(K, 0.0);
        double sum = 0;
        for (int64_t j = has_documents && i >= kFirst ? kFirst : 0; j <= i; ++j) {
          if ((i - j + h) % 2 != 0) continue;
          double s = 0;
          for (int64_t c = 0; c < K; ++c) s += at(q, b, i, h, c) * at(k, b, j, h / (H / G), c);
          s /= std::sqrt(static_cast<double>(K));
          const double weight = std::exp(s / (1 + std::abs(s) / 8));
          sum += weight;
          for (int64_t c = 0; c < K; ++c) y[static_cast<size_t>(c)] += weight * at(v, b, j, h / (H / G), c);
        }
        for (double x : y) out.push_back(sum > 0 ? x / sum : 0);
      }
  return out;
}

struct Inputs {
  Tensor q = random_normal({B, T, H, K}, "q", kF64), k = random_normal({B, T, G, K}, "k", kF64),
         v = random_normal({B, T, G, K}, "v", kF64);
};

void expect_near(const Var& got, const std::vector<double>& want, double tolerance) {
  const std::vector<double> a = ops::contiguous(got.value()).to_vector<double>();
  ASSERT_EQ(a.size(), want.size());
  for (size_t i = 0; i < a.size(); ++i) ASSERT_NEAR(a[i], want[i], tolerance) << i;
}

TEST(AttendWith, IsThatOfPlainLoops) {
  Inputs in;
  for (bool has_documents : {false, true}) {
    Tokens tokens(has_documents ? two_documents() : plain_tokens(B, T));
    expect_near(attend_with(Dilated{}, SoftSign{}, tokens, in.q, in.k, in.v)[0],
                plain_loops(in.q, in.k, in.v, has_documents), 1e-12);
  }
}

TEST(AttendWith, DecodesAsItRunsInParallel) {
  Inputs in;
  NoGrad no_grad;
  auto cache = make_cache(B, T);
  std::vector<Var> parts;
  int64_t begin = 0;
  for (int64_t count : {4, 1, 1, 3, 2}) {
    Tokens some(plain_tokens(B, count, begin), {.cache = cache});
    auto of = [&](const Tensor& x) { return slice(x, 1, begin, begin + count); };
    parts.push_back(attend_with(Dilated{}, SoftSign{}, some, of(in.q), of(in.k), of(in.v))[0]);
    some.finish_decode_step();
    begin += count;
  }
  expect_near(concatenate(parts, 1), plain_loops(in.q, in.k, in.v, false), 1e-12);
}

TEST(AttendWith, HasTheGradientsOfDifferences) {
  Inputs in;
  const Tensor inputs[] = {in.q, in.k, in.v};
  for (bool has_documents : {false, true}) {
    // Rows without keys have an lse of -infinity: only even heads, which see themselves, go into the sum.
    auto f = [&](std::span<const Var> x) {
      Tokens tokens(has_documents ? two_documents() : plain_tokens(B, T));
      auto [out, lse] = attend_with(Dilated{}, SoftSign{}, tokens, x[0], x[1], x[2]);
      return sum(transpose(out, 2, 3), -1) + slice(lse, 2, 0, 1);
    };
    GradientCheck check = check_gradients(f, inputs);
    EXPECT_TRUE(check.passed) << check.report;
    EXPECT_GT(check.num_checked, 150);
  }
}

TEST(AttendWith, RefusesOptionsThatTheScoreTakesThePlaceOf) {
  Inputs in;
  Tokens tokens(plain_tokens(B, T));
  const ops::AttentionOptions options{.score = {.softcap = 5}};
  EXPECT_EQ(test::error_of([&] { attend_with(Dilated{}, SoftSign{}, tokens, in.q, in.k, in.v, options); },
                           {"attend_with", "soft cap", "let the functor compute them"}),
            "");
}

// The gradient of heads that are transposed on the way has other strides.
TEST(Attend, TakesAGradientOfAnyStrides) {
  Inputs in;
  const Tensor inputs[] = {in.q, in.k, in.v};
  GradientCheck check = check_gradients(
      [](std::span<const Var> x) {
        Tokens tokens(plain_tokens(B, T));
        return transpose(tokens.attend(x[0], x[1], x[2])[0], 2, 3);
      },
      inputs);
  EXPECT_TRUE(check.passed) << check.report;
}

}  // namespace
}  // namespace weft
