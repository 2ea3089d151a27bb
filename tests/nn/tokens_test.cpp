// Tokens and buffers: sums, shifts, what is seen and counted, sharing, losses and running means.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/difference.h"
#include "tests/support/errors.h"
#include "tests/support/random.h"
#include "weft/autograd/gradient_check.h"
#include "weft/autograd/recompute.h"
#include "weft/models/language_model.h"

namespace weft {
namespace {

using test::error_of;
using test::max_difference;

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

TEST(Tokens, AValueThatIsSharedStays) {
  Tokens tokens(plain_tokens(2, 4));
  tokens.share("keys", Var(Tensor::zeros({2, 4, 3})));
  EXPECT_EQ(test::error_of(
                [&] {
                  tokens.share("keys", Var(Tensor::zeros({2, 4, 3})));
                },
                {"share: 'keys' is there already", "by the layer that leaves them"}),
            "");
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

}  // namespace
}  // namespace weft
