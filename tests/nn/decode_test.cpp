// Decoding gives what a parallel forward gives, whatever is read at once, and keeps what later tokens read.
#include <algorithm>
#include <functional>

#include "tests/nn/decode_support.h"
#include "tests/support/errors.h"
#include "weft/nn/mixers.h"

namespace weft {
namespace {

using namespace mixing_test;
using test::error_of;
using test::random_normal;

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
      {"attend to chosen keys",
       [](Tokens& tokens, const Var& part) {
         return attend_to_every_third(tokens, reshape(part, {part.size(0), part.size(1), 2, 3}))[0];
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
  for (const TokenData& data : {plain_tokens(kBatch, kTokens), prompts(), with_rows_swapped(prompts())})
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

// Rows that have ended leave the batch. The others get what they get beside them, and windows do not grow.
TEST(Decode, RowsThatEndLeaveTheBatch) {
  NoGrad no_grad;
  constexpr int32_t kLong = 60;
  constexpr int64_t kDim = 12;
  std::vector<std::pair<std::string, MixerMaker>> mixers{
      {"softmax", SoftmaxOptions{.heads = 2}},
      {"window", SoftmaxOptions{.heads = 2, .window = 3}},
      {"fox", ForgettingOptions{.heads = 2}},
      {"tapa", TapaOptions{.heads = 2, .window = 3}},
      {"delta", DeltaOptions{.decay = DeltaDecay::head, .heads = 2, .head_dim = 4}},
      {"hgrn", HgrnOptions{.heads = 0, .kernel = 4}},
      {"miras", MirasOptions{.kind = MirasKind::moneta, .heads = 2, .chunk = 5}},
      {"pooling", PoolingOptions{.heads = 2}},
      {"nats", NatsOptions{.heads = 2}}};
  for (bool are_padded : {false, true})
    for (const auto& [name, make] : mixers) {
      SCOPED_TRACE(str(name, are_padded ? ", padded" : ""));
      auto mixer = make({.dim = kDim, .context = kLong}, Rng(3));
      mixer->set_compute(kF64);
      const Tensor x = random_normal({3, kLong, kDim}, "x", kF64);
      TokenData data = plain_tokens(3, kLong);
      if (are_padded) {  // prompts of 7, 5 and 6 tokens
        Ints positions, documents;
        for (int32_t b = 0; b < 3; ++b)
          for (int32_t t = 0, next = 0; t < kLong; ++t) {
            const bool is_padding = (b == 1 && (t == 5 || t == 6)) || (b == 2 && t == 6);
            positions.push_back(is_padding ? kLong + t : next++), documents.push_back(is_padding ? -1 : 0);
          }
        data = {.positions = Tensor::from(std::span<const int32_t>(positions), {3, kLong}),
                .documents = Tensor::from(std::span<const int32_t>(documents), {3, kLong})};
      }
      Tokens whole(data);
      const Tensor expected = mixer->forward(x, whole).value();
      auto cache = make_cache(3, kLong);
      Ints going{0, 1, 2};
      int64_t of_three = 0;
      for (int64_t begin = 0, end = 7; begin < kLong; begin = end, end += 1) {
        const Tensor some = rows_of(x.slice(1, begin, end), going);
        TokenData part = part_of(data, begin, end);
        for (Tensor* of : {&part.positions, &part.documents})
          if (of->defined()) *of = rows_of(*of, going);
        Tokens tokens(part, {.cache = cache});
        const Var y = mixer->forward(some, tokens);
        tokens.finish_decode_step();
        if (begin > 0)
          expect_near(doubles(y.value()), doubles(rows_of(expected.slice(1, begin, end), going)), 1e-11, str(begin));
        if (end == 20) of_three = cached_bytes(*cache);
        if (end == 20) keep_rows(*cache, Ints{2, 0}), going = {2, 0};
        if (end == 30) keep_rows(*cache, Ints{1}), going = {0};
      }
      EXPECT_LT(2 * cached_bytes(*cache), of_three);
    }
  auto cache = make_cache(2, 4);
  EXPECT_EQ(error_of([&] { keep_rows(*cache, {}); }, {"keep_rows: no rows"}), "");
  EXPECT_EQ(error_of([&] { keep_rows(*cache, Ints{2}); }, {"row 2 of a batch of 2"}), "");
  EXPECT_EQ(error_of([&] { keep_rows(*cache, Ints{1, 1}); }, {"row 1 twice"}), "");
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

}  // namespace
}  // namespace weft
