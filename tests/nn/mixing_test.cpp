// The calls through which tokens see each other, against plain float64 loops: in any order of the tokens, with documents and padding, and
// in decoding, whatever is read at once.
#include "src/nn/mixing/mixing.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "tests/reference/conv.h"
#include "tests/support/errors.h"
#include "tests/support/random.h"
#include "weft/autograd/gradient_check.h"
#include "weft/nn/mixers.h"
#include "weft/nn/tokens.h"

namespace weft {
namespace {

using test::error_of;
using test::random_normal;
using Ints = std::vector<int32_t>;

constexpr int64_t kBatch = 2, kTokens = 13;

// Two documents per row, of other lengths in each, the last two tokens of row 1 padding.
Ints documents_of_rows() {
  Ints documents;
  for (int64_t b = 0; b < kBatch; ++b)
    for (int64_t t = 0; t < kTokens; ++t) documents.push_back(b == 1 && t >= 11 ? -1 : t < 4 + 3 * b ? 0 : 1);
  return documents;
}

// Which token of its row stands at each place: in order, or shuffled.
Ints order_of_rows(bool is_shuffled) {
  Ints order;
  for (int64_t b = 0; b < kBatch; ++b) {
    Ints row;
    for (int32_t t = 0; t < kTokens; ++t) row.push_back(t);
    for (size_t i = row.size(); i > 1 && is_shuffled; --i)
      std::swap(row[i - 1], row[Rng(5 + static_cast<uint64_t>(b)).below(i, i)]);
    order.insert(order.end(), row.begin(), row.end());
  }
  return order;
}

struct Layout {
  TokenData data;
  Ints order;  // token of the row at each place

  Layout(bool is_shuffled, bool has_documents) : order(order_of_rows(is_shuffled)) {
    const Ints of_row = documents_of_rows();
    Ints positions, documents;
    for (size_t i = 0; i < order.size(); ++i) {
      const size_t row = i / kTokens * kTokens;
      positions.push_back(order[i] + 3);
      documents.push_back(of_row[row + static_cast<size_t>(order[i])]);
    }
    data.positions = Tensor::from(std::span<const int32_t>(positions), {kBatch, kTokens});
    if (has_documents) data.documents = Tensor::from(std::span<const int32_t>(documents), {kBatch, kTokens});
  }
  // Numbers per token by position -> as the tokens stand here.
  std::vector<double> here(const std::vector<double>& by_position) const {
    const size_t each = by_position.size() / order.size();
    std::vector<double> out;
    for (size_t i = 0; i < order.size(); ++i)
      for (size_t c = 0; c < each; ++c)
        out.push_back(by_position[(i / kTokens * kTokens + static_cast<size_t>(order[i])) * each + c]);
    return out;
  }
};

Tensor tensor(const std::vector<double>& numbers, const Shape& shape) {
  return Tensor::from(std::span<const double>(numbers), shape);
}

void expect_near(const std::vector<double>& got, const std::vector<double>& expected, double bound,
                 const std::string& what) {
  ASSERT_EQ(got.size(), expected.size()) << what;
  for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], expected[i], bound) << what << ", number " << i;
}

TEST(Conv, IsThatOfPlainLoopsInAnyOrder) {
  const int64_t H = 2, K = 3, D = H * K;
  const std::vector<double> x = random_normal({kBatch, kTokens, D}, "x", kF64).to_vector<double>();
  std::vector<double> dy = random_normal({kBatch, kTokens, D}, "dy", kF64).to_vector<double>();
  const Ints of_row = documents_of_rows();
  for (bool has_documents : {false, true})
    for (int64_t W : {1, 2, 4, 20})
      for (bool has_bias : {false, true}) {
        const Tensor weight = random_normal({D, W}, "weight", kF64), bias = random_normal({D}, "bias", kF64);
        std::vector<int64_t> documents;
        std::vector<double> wanted = dy;
        if (has_documents) {
          documents.assign(of_row.begin(), of_row.end());
          for (size_t i = 0; i < wanted.size(); ++i)  // outputs of padding are nobody's
            if (documents[i / D] < 0) wanted[i] = 0;
        }
        const reference::Conv r =
            reference::causal_conv(x, kBatch, kTokens, D, weight.to_vector<double>(), W,
                                   has_bias ? bias.to_vector<double>() : std::vector<double>(), documents, wanted);
        for (bool is_shuffled : {false, true}) {
          const std::string what = str("W ", W, " documents ", has_documents, " shuffled ", is_shuffled);
          const Layout layout(is_shuffled, has_documents);
          Tokens tokens(layout.data);
          Var in = variable(tensor(layout.here(x), {kBatch, kTokens, H, K})), w = variable(weight), b = variable(bias);
          Var y = tokens.conv(in, w, has_bias ? b : Var());
          EXPECT_EQ(y.shape(), in.shape());
          std::vector<double> got = y.value().to_vector<double>(), expected = layout.here(r.y);
          const std::vector<double> weights = layout.here(wanted);
          for (size_t i = 0; i < got.size(); ++i)
            if (tokens.is_padding(static_cast<int64_t>(i) / D)) got[i] = expected[i] = 0;
          expect_near(got, expected, 1e-12, what);
          backward(sum_all(y * tensor(weights, {kBatch, kTokens, H, K})));
          expect_near(in.grad().to_vector<double>(), layout.here(r.dx), 1e-12, what + " dx");
          expect_near(w.grad().to_vector<double>(), r.dweight, 1e-12, what + " dweight");
          if (has_bias) expect_near(b.grad().to_vector<double>(), r.dbias, 1e-12, what + " dbias");
        }
      }
}

TEST(Conv, RefusesWhatDoesNotFit) {
  Tokens tokens(plain_tokens(1, 4));
  Var x = Tensor::zeros({1, 4, 6}, kF32);
  EXPECT_EQ(error_of([&] { tokens.conv(x, Tensor::zeros({6}, kF32)); }, {"conv: x is [1, 4, 6]", "a weight [D, W]"}),
            "");
  EXPECT_EQ(error_of(
                [&] {
                  tokens.conv(Tensor::zeros({1, 3, 6}, kF32), Tensor::zeros({6, 2}, kF32));
                },
                {"the tokens are [1, 4]"}),
            "");
}

TEST(Shift, AndSumsOfAWindowAreThoseOfPlainLoopsInAnyOrder) {
  const std::vector<double> x = random_normal({kBatch, kTokens}, "x", kF64).to_vector<double>();
  const Ints of_row = documents_of_rows();
  for (bool has_documents : {false, true})
    for (bool is_shuffled : {false, true})
      for (int64_t n : {1, 2, 5, 12, 13, 40}) {
        std::vector<double> moved, sums;
        for (int64_t i = 0; i < kBatch * kTokens; ++i) {
          auto same = [&](int64_t j) {
            return j >= i / kTokens * kTokens && j <= i &&
                   (!has_documents || of_row[static_cast<size_t>(j)] == of_row[static_cast<size_t>(i)]);
          };
          moved.push_back(same(i - n) ? x[static_cast<size_t>(i - n)] : 0);
          double sum = 0;
          for (int64_t j = std::max<int64_t>(0, i - n + 1); j <= i; ++j) sum += same(j) ? x[static_cast<size_t>(j)] : 0;
          sums.push_back(sum);
        }
        const Layout layout(is_shuffled, has_documents);
        Tokens tokens(layout.data);
        Var in = tensor(layout.here(x), {kBatch, kTokens, 1});
        auto without_padding = [&](std::vector<double> all) {
          for (size_t i = 0; i < all.size(); ++i)
            if (tokens.is_padding(static_cast<int64_t>(i))) all[i] = 0;
          return all;
        };
        const std::string what = str("n ", n, " documents ", has_documents, " shuffled ", is_shuffled);
        expect_near(without_padding(tokens.shift(in, n).value().to_vector<double>()),
                    without_padding(layout.here(moved)), 0, what);
        expect_near(without_padding(tokens.scan(in, n).value().to_vector<double>()), without_padding(layout.here(sums)),
                    1e-13, what);
      }
}

// Each token finds those behind it and in front of it by its place, while the documents there say that they are neighbours.
TEST(Neighbours, StandBesideEachTokenInAnyOrder) {
  std::vector<double> x;
  for (int i = 0; i < kBatch * kTokens; ++i) x.push_back(i);
  const Ints of_row = documents_of_rows();
  for (bool has_documents : {false, true})
    for (bool is_shuffled : {false, true}) {
      const Layout layout(is_shuffled, has_documents);
      const TokenTable table(layout.data);
      const Mixing::Neighbours near = make_local(table)->neighbours(tensor(layout.here(x), {kBatch, kTokens, 1}), 2, 3);
      const std::vector<double> there = near.x.value().to_vector<double>();
      const Ints documents = near.documents.defined() ? near.documents.to_vector<int32_t>() : Ints();
      const int64_t T = near.x.size(1);
      for (int64_t i = 0; i < kBatch * kTokens; ++i) {
        const int64_t token = i / kTokens * kTokens + layout.order[static_cast<size_t>(i)];  // in order
        const int64_t at = near.places.empty() ? i / kTokens * T + T - kTokens + i % kTokens
                                               : int64_t{near.places[static_cast<size_t>(i)]};
        if (has_documents && of_row[static_cast<size_t>(token)] < 0) continue;
        for (int64_t n = -2; n <= 3; ++n) {
          const bool is_there =
              (token + n) / kTokens == token / kTokens && token + n >= 0 &&
              (!has_documents || of_row[static_cast<size_t>(token + n)] == of_row[static_cast<size_t>(token)]);
          const bool is_found =
              at + n >= 0 && (at + n) / T == at / T &&
              (documents.empty() || documents[static_cast<size_t>(at + n)] == documents[static_cast<size_t>(at)]);
          ASSERT_EQ(is_found, is_there) << i << " " << n << " " << has_documents << is_shuffled;
          if (!is_there) continue;
          ASSERT_EQ(there[static_cast<size_t>(at + n)], x[static_cast<size_t>(token + n)]) << i << " " << n;
        }
      }
    }
  NoGrad no_grad;
  const TokenTable table(plain_tokens(1, 2));
  EXPECT_EQ(error_of(
                [&] {
                  make_decode(table, make_cache(1, 4))->neighbours(Tensor::zeros({1, 2, 1}, kF64), 0, 1);
                },
                {"neighbours: 1 tokens behind each in decoding", "not there yet"}),
            "");
}

// What each key gets of the weights, and of whom: one whole matrix per head.
std::vector<double> masses(const Tensor& q, const Tensor& k, const TokenData& data, int64_t window, bool is_sigmoid) {
  const int64_t B = q.size(0), T = q.size(1), H = q.size(2), K = q.size(3), G = k.size(2);
  const auto qs = q.to_vector<double>(), ks = k.to_vector<double>();
  const Ints positions = data.positions.to_vector<int32_t>();
  const Ints documents = data.documents.defined() ? data.documents.to_vector<int32_t>() : Ints(positions.size(), 0);
  std::vector<double> mass(static_cast<size_t>(B * T * H), 0.0);
  for (int64_t b = 0; b < B; ++b)
    for (int64_t h = 0; h < H; ++h)
      for (int64_t i = 0; i < T; ++i) {
        std::vector<double> row(static_cast<size_t>(T), 0.0);
        double total = 0;
        const auto qi = static_cast<size_t>(b * T + i);
        for (int64_t j = 0; j < T; ++j) {
          const auto kj = static_cast<size_t>(b * T + j);
          const int32_t distance = positions[qi] - positions[kj];
          if (distance < 0 || (window > 0 && distance >= window)) continue;
          if (documents[qi] != documents[kj] || documents[qi] < 0) continue;
          double score = 0;
          for (int64_t c = 0; c < K; ++c)
            score += qs[(qi * static_cast<size_t>(H) + static_cast<size_t>(h)) * static_cast<size_t>(K) +
                        static_cast<size_t>(c)] *
                     ks[(kj * static_cast<size_t>(G) + static_cast<size_t>(h / (H / G))) * static_cast<size_t>(K) +
                        static_cast<size_t>(c)];
          score /= std::sqrt(static_cast<double>(K));
          total += row[static_cast<size_t>(j)] = is_sigmoid ? 1 / (1 + std::exp(-score)) : std::exp(score);
        }
        for (int64_t j = 0; j < T && total > 0; ++j)
          mass[static_cast<size_t>((b * T + j) * H + h)] += row[static_cast<size_t>(j)] / total;
      }
  return mass;
}

ops::AttentionOptions attention(int64_t window, bool is_sigmoid) {
  ops::AttentionOptions options{.mask = {.window = window}};
  if (is_sigmoid) options.normaliser = ops::Normaliser::sum, options.score.activation = ops::ScoreActivation::sigmoid;
  return options;
}

std::vector<double> doubles(const Tensor& t) { return cast(Var(t), kF64).value().to_vector<double>(); }

TEST(ColumnMass, IsThatOfAMaterialisedMatrix) {
  const Tensor q = random_normal({kBatch, kTokens, 4, 6}, "q", kF64),
               k = random_normal({kBatch, kTokens, 2, 6}, "k", kF64),
               v = random_normal({kBatch, kTokens, 2, 5}, "v", kF64);
  for (bool has_documents : {false, true})
    for (bool is_shuffled : {false, true})
      for (int64_t window : {0, 1, 3})
        for (bool is_sigmoid : {false, true}) {
          const Layout layout(is_shuffled, has_documents);
          Tokens tokens(layout.data);
          const ops::AttentionOptions options = attention(window, is_sigmoid);
          const QuerySet queries = tokens.queries(q);
          const KeySet keys = tokens.keys(k, v);
          Var lse = tokens.attend_part(queries, keys, options)[1];
          const Tensor mass = tokens.column_mass(queries, keys, lse, options);
          EXPECT_EQ(mass.shape(), (Shape{kBatch, kTokens, 4}));
          expect_near(doubles(mass), masses(q, k, layout.data, window, is_sigmoid), 1e-5,
                      str("documents ", has_documents, " shuffled ", is_shuffled, " window ", window));
        }
}

// Steps of a decoding: some tokens at once, then one or two.
std::vector<std::pair<int64_t, int64_t>> steps(int64_t num_tokens, int64_t first) {
  std::vector<std::pair<int64_t, int64_t>> all;
  for (int64_t begin = 0, count = first; begin < num_tokens; begin += count, count = begin % 3 == 0 ? 2 : 1) {
    count = std::min(count, num_tokens - begin);
    all.emplace_back(begin, begin + count);
  }
  return all;
}

TokenData part_of(const TokenData& all, int64_t begin, int64_t end) {
  auto part = [&](const Tensor& t) {
    if (!t.defined()) return t;
    Ints numbers = t.slice(1, begin, end).to_vector<int32_t>();
    return Tensor::from(std::span<const int32_t>(numbers), {t.size(0), end - begin});
  };
  return {.positions = part(all.positions), .documents = part(all.documents)};
}

// Prompts of 5 and 3 tokens, padded, then 8 more tokens each, in which a document ends; a finished row goes on with padding.
TokenData prompts() {
  const Ints documents{0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 0, 0, 0, -1, -1, 0, 0, 0, 5, 5, -1, -1, -1};
  Ints positions;
  for (int64_t b = 0; b < kBatch; ++b)
    for (int32_t t = 0, next = 0; t < kTokens; ++t)
      positions.push_back(documents[static_cast<size_t>(b * kTokens + t)] < 0 ? 40 + t : next++);
  return {.positions = Tensor::from(std::span<const int32_t>(positions), {kBatch, kTokens}),
          .documents = Tensor::from(std::span<const int32_t>(documents), {kBatch, kTokens})};
}

TEST(Decode, GivesWhatAParallelForwardGives) {
  NoGrad no_grad;
  const Tensor x = random_normal({kBatch, kTokens, 6}, "x", kF64), weight = random_normal({6, 4}, "weight", kF64);
  using Call = std::function<Var(Tokens&, const Var&)>;
  auto attend = [](int64_t window) {
    return [window](Tokens& tokens, const Var& part) {
      Var heads = reshape(part, {part.size(0), part.size(1), 2, 3});
      return tokens.attend(heads, heads * 0.7, heads * 1.3, {.mask = {.window = window}})[0];
    };
  };
  const std::vector<std::pair<std::string, Call>> calls{
      {"attend", attend(0)},
      {"attend in a window of 1", attend(1)},
      {"attend in a window of 3", attend(3)},
      {"attend in a window of 40", attend(40)},
      {"attend_keys",
       [](Tokens& tokens, const Var& part) {
         Var heads = unsqueeze(part, 2);
         return tokens.attend_keys(heads, heads, 4, {.mask = {.window = 4}})[0];
       }},
      {"scan", [](Tokens& tokens, const Var& part) { return tokens.scan(part); }},
      {"scan of 1", [](Tokens& tokens, const Var& part) { return tokens.scan(part, 1); }},
      {"scan of 4", [](Tokens& tokens, const Var& part) { return tokens.scan(part, 4); }},
      {"shift", [](Tokens& tokens, const Var& part) { return tokens.shift(part, 1); }},
      {"shift by 3", [](Tokens& tokens, const Var& part) { return tokens.shift(part, 3); }},
      {"conv", [&](Tokens& tokens, const Var& part) { return tokens.conv(part, weight); }},
      {"gather and seen",
       [](Tokens& tokens, const Var& part) {
         const Var mine[] = {part};
         Var all = tokens.gather(mine)[0];
         Tensor seen = tokens.seen(0, tokens.num_tokens(), all.size(1), 5);
         Var distance = unsqueeze(cast(Var(tokens.document_positions()), kF64), 2) -
                        unsqueeze(cast(Var(tokens.gathered_positions()), kF64), 1);
         return matmul(cast(Var(seen), kF64) * (distance + 2.0), all);
       }},
      {"gather of a window and seen",
       [](Tokens& tokens, const Var& part) {
         const Var mine[] = {part};
         Var all = tokens.gather(mine, 3)[0];
         Tensor seen = tokens.seen(0, tokens.num_tokens(), all.size(1), 2, 3);
         Var distance = unsqueeze(cast(Var(tokens.document_positions()), kF64), 2) -
                        unsqueeze(cast(Var(tokens.gathered_positions(3)), kF64), 1);
         return matmul(cast(Var(seen), kF64) * (distance + 2.0), all);
       }},
      {"visible keys",
       [](Tokens& tokens, const Var& part) { return part * cast(unsqueeze(Var(tokens.visible_keys(5)), -1), kF64); }}};
  for (const TokenData& data : {plain_tokens(kBatch, kTokens), prompts()})
    for (const auto& [name, call] : calls) {
      Tokens all(data);
      const std::vector<double> expected = doubles(call(all, x).value());
      for (int64_t first : {5, 1, 9}) {
        if (data.documents.defined() && first != 5) continue;  // a prompt is read at once, then padding stands last
        auto cache = make_cache(kBatch, kTokens);
        std::vector<Var> parts;
        for (auto [begin, end] : steps(kTokens, first)) {
          Tokens some(part_of(data, begin, end), {.cache = cache});
          Var y = call(some, x.slice(1, begin, end));
          parts.push_back(reshape(y, {kBatch, end - begin, y.value().num_elements() / (kBatch * (end - begin))}));
          some.finish_decode_step();
        }
        std::vector<double> got = doubles(concatenate(parts, 1).value()), wanted = expected;
        ASSERT_EQ(got.size(), wanted.size());
        for (size_t i = 0; i < got.size(); ++i)
          if (all.is_padding(static_cast<int64_t>(i * kBatch * kTokens / got.size()))) got[i] = wanted[i] = 0;
        expect_near(got, wanted, 1e-12, str(name, ", documents ", data.documents.defined(), ", first ", first));
      }
    }
}

TEST(Decode, TheMassOfItsStepsIsThatOfAllQueries) {
  NoGrad no_grad;
  const Tensor q = random_normal({kBatch, kTokens, 4, 6}, "q", kF64),
               k = random_normal({kBatch, kTokens, 2, 6}, "k", kF64);
  const TokenData data = plain_tokens(kBatch, kTokens);
  std::vector<double> mass(static_cast<size_t>(kBatch * kTokens * 4), 0.0);
  auto cache = make_cache(kBatch, kTokens);
  for (auto [begin, end] : steps(kTokens, 4)) {
    Tokens some(part_of(data, begin, end), {.cache = cache});
    const QuerySet queries = some.queries(q.slice(1, begin, end));
    const KeySet keys = some.keys(k.slice(1, begin, end), k.slice(1, begin, end));
    Var lse = some.attend_part(queries, keys, {})[1];
    const std::vector<double> more = doubles(some.column_mass(queries, keys, lse));
    for (int64_t b = 0; b < kBatch; ++b)
      for (int64_t i = 0; i < end * 4; ++i)
        mass[static_cast<size_t>(b * kTokens * 4 + i)] += more[static_cast<size_t>(b * end * 4 + i)];
    some.finish_decode_step();
  }
  expect_near(mass, masses(q, k, data, 0, false), 1e-5, "mass");
}

// Bytes of the cache after so many tokens.
int64_t bytes_after(int64_t num_tokens, int64_t window, int64_t first, bool has_documents) {
  NoGrad no_grad;
  auto cache = make_cache(1, 1000);
  for (int64_t begin = 0, count = first; begin < num_tokens; begin += count, count = 1) {
    TokenData data = plain_tokens(1, count, begin);
    if (has_documents) data.documents = Tensor::full({1, count}, begin < 50 ? 0 : 1, kI32);
    Tokens tokens(data, {.cache = cache});
    Var x = Tensor::full({1, count, 2, 4}, 1, kF32);
    tokens.attend(x, x, x, {.mask = {.window = window}});
    tokens.scan(x, window);
    tokens.shift(x, 3);
    tokens.conv(x, Tensor::full({8, 4}, 1, kF32));
    const Var mine[] = {x};
    tokens.gather(mine, window);
    tokens.finish_decode_step();
  }
  return cached_bytes(*cache);
}

TEST(Decode, AWindowKeepsItsKeysAndNoMore) {
  constexpr int64_t kRow = 2 * 4 * 4;  // bytes of one token
  for (bool has_documents : {false, true})
    for (int64_t first : {1, 7, 200}) {
      const int64_t window = 16;
      const int64_t early = bytes_after(300, window, first, has_documents);
      EXPECT_EQ(bytes_after(900, window, first, has_documents), early) << first;
      EXPECT_LE(early, 2 * (4 * (window - 1) + 3 + 3) * kRow) << first;  // keys, values, sums, gathered; shift; conv
      EXPECT_GE(early, (4 * (window - 1) + 3 + 3) * kRow) << first;
    }
  EXPECT_GE(bytes_after(300, 0, 1, false), 2 * 300 * kRow);  // without a window all keys stay
}

// Their earlier queries and keys beside the window are what multi-token attention reads too.
TEST(Decode, MixersThatGatherInAWindowKeepNoMoreThanTheyRead) {
  NoGrad no_grad;
  constexpr int64_t kLong = 40, kDim = 8;
  const std::pair<std::string, MixerMaker> mixers[] = {
      {"tapa", TapaOptions{.heads = 2, .window = 3}},
      {"multi_token", MultiTokenOptions{.heads = 2, .query_kernel = 3, .key_kernel = 3, .window = 2}},
      {"multi_token, weights too",
       MultiTokenOptions{.heads = 2, .query_kernel = 4, .key_kernel = 5, .has_weight_conv = true, .window = 3}}};
  TokenData packed = plain_tokens(1, kLong);
  packed.documents = Tensor::empty({1, kLong}, kI32, Device::cpu());
  for (int64_t t = 0; t < kLong; ++t) packed.documents.mutable_data<int32_t>()[t] = t < 17 ? 0 : t < 19 ? 1 : 2;
  for (const auto& [name, make] : mixers)
    for (const TokenData& data : {plain_tokens(1, kLong), packed}) {
      auto mixer = make({.dim = kDim, .context = kLong}, Rng(3));
      for (const NamedParam& p : mixer->params())
        p.param->set_value((Var(p.param->value()) + random_normal(p.param->value().shape(), p.name) * 0.4).value());
      mixer->set_compute(kF64);
      const Tensor x = random_normal({1, kLong, kDim}, "x", kF64);
      Tokens all(data);
      const std::vector<double> expected = doubles(mixer->forward(x, all).value());
      auto cache = make_cache(1, kLong);
      std::vector<Var> parts;
      int64_t bytes = 0;
      for (auto [begin, end] : steps(kLong, 5)) {
        Tokens some(part_of(data, begin, end), {.cache = cache});
        parts.push_back(mixer->forward(x.slice(1, begin, end), some));
        some.finish_decode_step();
        if (begin < kLong / 2) bytes = cached_bytes(*cache);
      }
      expect_near(doubles(concatenate(parts, 1).value()), expected, 1e-12, name);
      EXPECT_EQ(cached_bytes(*cache), bytes) << name;
    }
}

TEST(Decode, RefusesWhatItCannotKeep) {
  NoGrad no_grad;
  Var x = Tensor::full({1, 1, 2, 4}, 1, kF32);
  auto cache = make_cache(1, 9);
  Tokens first(plain_tokens(1, 1), {.cache = cache});
  KeySet keys = first.keys(x, x, {.window = 3});
  first.attend_part(first.queries(x), keys, {.mask = {.window = 2}});
  for (int64_t window : {0, 4})
    EXPECT_EQ(error_of([&] { first.attend_part(first.queries(x), keys, {.mask = {.window = window}}); },
                       {str("a window of ", window, " over keys that are kept for one of 3"), "ask keys()"}),
              "");
  for (auto [begin, window] : {std::pair<int64_t, int64_t>{0, 0}, {0, 4}, {-1, 3}})
    EXPECT_EQ(error_of([&] { first.seen(begin, 1, 1, window, 3); },
                       {str("a window of ", window, " from token ", begin, " on"), "gathered for one of 3"}),
              "");
  first.finish_decode_step();
  Tokens second(plain_tokens(1, 1, 1), {.cache = cache});
  second.finish_decode_step();
  Tokens third(plain_tokens(1, 1, 2), {.cache = cache});
  EXPECT_EQ(error_of([&] { third.keys(x, x, {.window = 3}); },
                     {"'keys 0' has seen 1 of the 2 tokens before these", "the same calls"}),
            "");
  TokenData packed = plain_tokens(1, 1, 2);
  packed.documents = Tensor::zeros({1, 1}, kI32);
  EXPECT_EQ(
      error_of([&] { Tokens(packed, {.cache = cache}); }, {"documents are not given for the tokens in the cache"}), "");
  TokenData turned{.positions = Tensor::from<int32_t>({3, 2}, {1, 2})};
  EXPECT_EQ(error_of([&] { Tokens(turned, {.cache = cache}); }, {"do not stand one after the other", "in the order"}),
            "");
  EXPECT_EQ(error_of([&] { Tokens(plain_tokens(1, 8, 2), {.cache = cache}); }, {"2 tokens are cached and 8 come"}), "");
}

TEST(TokenData, TokensAreConsecutiveWhereTheirPositionsSaySo) {
  auto read = [](const Ints& positions) {
    return are_consecutive(Tensor::from(std::span<const int32_t>(positions), {2, 3}));
  };
  EXPECT_TRUE(read({0, 1, 2, 7, 8, 9}));
  EXPECT_FALSE(read({0, 1, 2, 7, 9, 8}));
  EXPECT_FALSE(read({0, 2, 4, 1, 2, 3}));
  EXPECT_TRUE(are_consecutive(Tensor::zeros({2, 0}, kI32)));
}

TEST(Sum, OfARowIsThatOfItsTokens) {
  Tensor x = random_normal({kBatch, kTokens, 3}, "x", kF64);
  const auto numbers = x.to_vector<double>();
  const Layout layout(true, true);
  Tokens tokens(layout.data);
  std::vector<double> expected(kBatch * 3, 0.0);
  for (int64_t i = 0; i < kBatch * kTokens; ++i)
    for (int64_t c = 0; c < 3 && !tokens.is_padding(i); ++c)
      expected[static_cast<size_t>(i / kTokens * 3 + c)] += numbers[static_cast<size_t>(i * 3 + c)];
  expect_near(doubles(tokens.sum(x, Over::row).value()), expected, 1e-12, "row");
  std::vector<double> all{expected[0] + expected[3], expected[1] + expected[4], expected[2] + expected[5]};
  expect_near(doubles(tokens.sum(x).value()), all, 1e-12, "batch");
  GradientCheck check = check_gradients(
      [&](std::span<const Var> in) {
        Tokens again(layout.data);
        return again.sum(in[0], Over::row);
      },
      {&x, 1});
  EXPECT_TRUE(check.passed) << check.report;
}

// Counts what a maker over ranks would exchange.
class Counting final : public Mixing {
 public:
  Counting(std::unique_ptr<Mixing> inner, std::vector<int64_t>& counts) : inner_(std::move(inner)), counts_(counts) {}
  const Runs& runs() const override { return inner_->runs(); }
  KeySet keys(const Var& k, const Var& v, const KeyOptions& options) override {
    return ++counts_[0], inner_->keys(k, v, options);
  }
  State attend(const QuerySet& queries, const KeySet& keys, const Call& call) override {
    return ++counts_[1], inner_->attend(queries, keys, call);
  }
  Var prefix(const Var& x, int64_t window) override { return ++counts_[2], inner_->prefix(x, window); }
  Neighbours neighbours(const Var& x, int64_t before, int64_t after) override {
    return ++counts_[3], inner_->neighbours(x, before, after);
  }
  std::vector<Var> gather(std::span<const Var> values, int64_t window) override {
    return ++counts_[4], inner_->gather(values, window);
  }
  const GatheredTokens& gathered(int64_t window) override { return inner_->gathered(window); }
  Var sum(const Var& x, Over over) override { return ++counts_[5], inner_->sum(x, over); }
  ops::AttentionStatistics statistics(const QuerySet& queries, const KeySet& keys, const State& state,
                                      const Call& call) override {
    return ++counts_[6], inner_->statistics(queries, keys, state, call);
  }

 private:
  std::unique_ptr<Mixing> inner_;
  std::vector<int64_t>& counts_;
};

TEST(Mixing, ExchangesDoNotDependOnWhatARouterChose) {
  SoftmaxOptions options{.heads = 4, .kv_heads = 2};
  options.head_mixture = {.active = 1, .shared = 1, .path = HeadPath::grouped, .balance_loss = 0.01};
  std::vector<std::vector<int64_t>> all;
  for (double bias : {0.0, 50.0}) {  // with a large input every token chooses the same head
    auto mixer = options({.dim = 16, .context = 16, .std = 0.4, .out_std = 0.4}, Rng(1));
    std::vector<int64_t>& counts = all.emplace_back(7, 0);
    auto count = [&](std::unique_ptr<Mixing> inner) { return std::make_unique<Counting>(std::move(inner), counts); };
    Tokens tokens(plain_tokens(2, 12),
                  {.is_training = true, .rng = Rng(2), .takes_diagnostics = true, .mixing = count});
    Var x = random_normal({2, 12, 16}, "x");
    mixer->forward(x + bias, tokens);
  }
  EXPECT_NE(all[0][1], all[1][1])
      << "the router chose other heads, so that attend() is called as often as heads are used";
  EXPECT_EQ(all[0][0], 1);
  for (size_t which : {0u, 2u, 3u, 4u, 5u, 6u}) EXPECT_EQ(all[0][which], all[1][which]) << which;
}

}  // namespace
}  // namespace weft
