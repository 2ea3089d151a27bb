// Decoding on several ranks that share out the keys of a cache gives what one rank gives, the same bits on all of them, and each keeps its part.
#include <cmath>
#include <functional>
#include <mutex>

#include "tests/nn/decode_support.h"
#include "tests/support/errors.h"
#include "weft/comm/communicator.h"
#include "weft/models/sample.h"
#include "weft/nn/context_group.h"
#include "weft/nn/mixers/compositions.h"
#include "weft/nn/mixers/hybrids.h"
#include "weft/nn/mixers/recurrent.h"

namespace weft {
namespace {

using namespace mixing_test;
using test::error_of;
using test::random_normal;

using Call = std::function<Var(Tokens&, const Var& part)>;  // of numbers [B, T, 12]

// As an output and an lse that may be -inf.
Var both(const std::array<Var, 2>& result) {
  Var out = reshape(result[0], {result[0].size(0), result[0].size(1), result[0].size(2) * result[0].size(3)});
  if (!result[1].defined()) return out;
  const Var parts[] = {out, maximum(result[1], Var(Tensor::full({}, -99, kF64)))};
  return concatenate(parts, 2);
}

// Four query heads and two of keys and values, three wide.
struct Heads {
  explicit Heads(const Var& part)
      : q(reshape(part, {part.size(0), part.size(1), 4, 3})), k(slice(q, 2, 1, 3) * 0.7), v(slice(q, 2, 2, 4) * 1.3) {}
  Var q, k, v;
};

Call attend_with_options(const ops::AttentionOptions& options) {
  return [options](Tokens& tokens, const Var& part) {
    const Heads x(part);
    return both(tokens.attend(x.q, x.k, x.v, options));
  };
}

const std::vector<std::pair<std::string, Call>>& calls() {
  static const Tensor slopes = Tensor::from<float>({0.5F, 0.25F, 0.125F, 0.0625F}, {4});
  static const std::vector<std::pair<std::string, Call>> all{
      {"softmax", attend_with_options({})},
      {"a window", attend_with_options({.mask = {.window = 3}})},
      {"a prefix", attend_with_options({.mask = {.prefix = 4}})},
      {"a prefix beside a window", attend_with_options({.mask = {.window = 2, .prefix = 3}})},
      {"a soft cap and slopes", attend_with_options({.score = {.softcap = 2, .alibi_slopes = slopes}})},
      {"signed softmax", attend_with_options({.normaliser = ops::Normaliser::signed_softmax})},
      {"sigmoid", attend_with_options({.score = {.shift = -0.3, .activation = ops::ScoreActivation::sigmoid},
                                       .normaliser = ops::Normaliser::sum})},
      {"bare scores", attend_with_options({.normaliser = ops::Normaliser::sum})},
      {"biases",
       [](Tokens& tokens, const Var& part) {
         const Heads x(part);
         const Var of_query = slice(part, 2, 0, 4) * 3.0, of_key = slice(part, 2, 4, 6) * -2.0;
         return both(tokens.attend(x.q, x.k, x.v, {}, {}, {.query = of_query, .key = of_key}));
       }},
      {"values in keys",
       [](Tokens& tokens, const Var& part) {
         return both(tokens.attend_keys(Heads(part).q, unsqueeze(slice(part, 2, 0, 3), 2), 2));
       }},
      {"chosen keys",
       [](Tokens& tokens, const Var& part) { return both(attend_to_every_third(tokens, Heads(part).q)); }},
      {"keys for several calls",
       [](Tokens& tokens, const Var& part) {
         const Heads x(part);
         const KeySet keys = tokens.keys(x.k, x.v);
         std::vector<Var> outs{both(tokens.attend_part(tokens.queries(x.q), keys, {.mask = {.window = 4}}))};
         const std::vector<KeySet> groups = keys.groups();
         for (int64_t g = 0; g < 2; ++g)
           outs.push_back(both(tokens.attend_part(tokens.queries(slice(x.q, 2, 2 * g, 2 * g + 2)),
                                                  groups[static_cast<size_t>(g)], {})));
         return concatenate(outs, 2);
       }},
      {"keys of single rows",
       [](Tokens& tokens, const Var& part) {
         const Heads x(part);
         std::vector<Var> outs;
         std::vector<int32_t> which;
         for (int32_t t = 0; t < tokens.num_tokens(); ++t) which.push_back(t);
         const std::vector<KeySet> rows = tokens.keys(x.k, x.v).rows();
         for (int64_t b = 0; b < tokens.batch(); ++b)
           outs.push_back(both(tokens.attend_part(tokens.queries(slice(x.q, 0, b, b + 1), b, which),
                                                  rows[static_cast<size_t>(b)], {})));
         return concatenate(outs, 0);
       }},
      {"keys that another layer left",
       [](Tokens& tokens, const Var& part) {
         const Heads x(part);
         const KeySet keys = tokens.keys(x.k, x.v);
         const KeySet same{.k = keys.k, .v = keys.v, .bias = {}, .tokens = keys.tokens};
         return both(tokens.attend_part(tokens.queries(x.q), same, {}));
       }},
      {"keys that the layer reads itself",
       [](Tokens& tokens, const Var& part) {
         const Heads x(part);
         const KeySet keys = tokens.keys(x.k, x.v);
         return both(attend(x.q, keys.k, keys.v, tokens.attention_tokens(), keys.tokens,
                            {.mask = {.same_document = tokens.documents().defined()}}));
       }},
      {"gathered values",
       [](Tokens& tokens, const Var& part) {
         const Var mine[] = {part};
         const Var all = tokens.gather(mine)[0];
         return matmul(cast(Var(tokens.seen(0, tokens.num_tokens(), all.size(1))), kF64), all);
       }},
      {"sums and neighbours",
       [](Tokens& tokens, const Var& part) {
         return tokens.scan(part) + tokens.shift(part, 2) +
                part * cast(unsqueeze(Var(tokens.visible_keys()), -1), kF64);
       }},
  };
  return all;
}

// What the steps give, token by token, with padding as 0.
std::vector<double> decoded(const Call& call, const TokenData& data, const Tensor& x,
                            const std::shared_ptr<Cache>& cache, int64_t first) {
  NoGrad no_grad;
  std::vector<Var> parts;
  for (auto [begin, end] : steps(kTokens, first)) {
    Tokens some(part_of(data, begin, end), {.cache = cache});
    parts.push_back(call(some, x.slice(1, begin, end)));
    some.finish_decode_step();
  }
  std::vector<double> got = doubles(concatenate(parts, 1).value());
  const Tokens all(data);
  for (size_t i = 0; i < got.size(); ++i)
    if (all.is_padding(static_cast<int64_t>(i * kBatch * kTokens / got.size()))) got[i] = 0;
  return got;
}

// Of 18 ranks the last ones never have a key, and results meet by a tree.
TEST(DecodeOnRanks, GivesWhatOneRankGives) {
  const Tensor x = random_normal({kBatch, kTokens, 12}, "x", kF64);
  for (const TokenData& data : {plain_tokens(kBatch, kTokens), prompts(), with_rows_swapped(prompts())})
    for (const auto& [name, call] : calls())
      for (int64_t first : {5, 1}) {
        if (data.documents.defined() && first != 5) continue;  // a prompt is read at once, then padding stands last
        const std::vector<double> expected = decoded(call, data, x, make_cache(kBatch, kTokens), first);
        for (int ranks : {2, 3, 18}) {
          if (ranks > 3 && !data.documents.defined()) continue;
          std::vector<std::vector<double>> got(static_cast<size_t>(ranks));
          dist::run_thread_ranks(ranks, [&, &call = call](dist::Communicator& comm) {
            got[static_cast<size_t>(comm.rank())] = decoded(call, data, x, make_cache(kBatch, kTokens, comm), first);
          });
          const std::string what =
              str(name, ", ", ranks, " ranks, documents ", data.documents.defined(), ", first ", first);
          expect_near(got[0], expected, 1e-12, what);
          for (const std::vector<double>& other : got) EXPECT_EQ(other == got[0], true) << what;
        }
      }
}

// Bytes of the caches after 24 tokens, by rank.
std::vector<int64_t> bytes_of(int ranks, const Call& call) {
  std::vector<int64_t> bytes(static_cast<size_t>(ranks));
  dist::run_thread_ranks(ranks, [&](dist::Communicator& comm) {
    NoGrad no_grad;
    const auto cache = make_cache(1, 24, comm);
    for (int64_t begin = 0, count = 7; begin < 24; begin += count, count = 1) {
      Tokens tokens(plain_tokens(1, count, begin), {.cache = cache});
      call(tokens, Tensor::full({1, count, 12}, 1, kF64));
      tokens.finish_decode_step();
    }
    bytes[static_cast<size_t>(comm.rank())] = cached_bytes(*cache);
  });
  return bytes;
}

TEST(DecodeOnRanks, EachKeepsItsPartOfTheKeys) {
  constexpr std::string_view kWhole[] = {"a window",
                                         "keys for several calls",
                                         "keys of single rows",
                                         "keys that another layer left",
                                         "keys that the layer reads itself",
                                         "gathered values",
                                         "sums and neighbours"};
  for (const auto& [name, call] : calls()) {
    const bool is_whole = std::ranges::find(kWhole, name) != std::end(kWhole);
    const int64_t of_one = bytes_of(1, call)[0];
    EXPECT_GT(of_one, 0) << name;
    for (int ranks : {2, 3, 4, 8}) {
      const int64_t share = is_whole ? of_one : of_one / ranks;
      // Of 8 chosen keys of 4 heads, 3 wide, and as much of values.
      const int64_t at_most = name == "chosen keys" ? (8 + ranks - 1) / ranks * 4 * 3 * 2 * 8 : share;
      for (int64_t bytes : bytes_of(ranks, call)) {
        EXPECT_LE(bytes, at_most) << name << " on " << ranks;
        EXPECT_GE(bytes, name == "chosen keys" ? 1 : share) << name << " on " << ranks;
      }
    }
  }
}

TEST(DecodeOnRanks, TextsAreThoseOfOneRank) {
  const std::vector<int32_t> prompt{3, 1, 4, 1, 5};
  for (const LanguageModelOptions& options : decoded_models())
    for (double temperature : {0.0, 1.0}) {
      auto text = [&](dist::Communicator* ranks) {
        LanguageModel model(options, Rng(2));
        return sample(model, prompt, {.tokens = 30, .temperature = temperature, .seed = 5, .ranks = ranks});
      };
      const std::vector<int32_t> expected = text(nullptr);
      for (int ranks : {1, 2, 3})
        dist::run_thread_ranks(ranks, [&](dist::Communicator& comm) { EXPECT_EQ(text(&comm), expected) << ranks; });
    }
}

// Where the logits of ranks differ, here because their weights do, all go on with what the first one drew.
TEST(DecodeOnRanks, TheFirstRankDraws) {
  std::vector<std::vector<int32_t>> texts(3);
  dist::run_thread_ranks(3, [&](dist::Communicator& comm) {
    LanguageModel model({.vocab = 19, .dim = 16, .layers = 1, .context = 40, .std = 0.5},
                        Rng(static_cast<uint64_t>(comm.rank())));
    texts[static_cast<size_t>(comm.rank())] = sample(model, std::vector<int32_t>{3, 1}, {.tokens = 30, .ranks = &comm});
  });
  EXPECT_GT(texts[0].size(), 2u);
  EXPECT_EQ(texts[1], texts[0]);
  EXPECT_EQ(texts[2], texts[0]);
}

// Against float64, root mean squares: results of ranks meet in f32, which rounds f32 outputs once more and is nothing in bf16.
TEST(DecodeOnRanks, ErrorsInFloat32AndBf16AreThoseOfOneRank) {
  constexpr int64_t kLong = 96, kPrompt = 72, kHeads = 8, kWidth = 16;
  for (const ops::AttentionOptions& options :
       {ops::AttentionOptions{}, ops::AttentionOptions{.mask = {.prefix = 4}, .score = {.softcap = 2}},
        ops::AttentionOptions{.normaliser = ops::Normaliser::sum}})
    for (DType dtype : {kF32, kBF16}) {
      auto made = [&](const char* name, int64_t heads) {
        return cast(Var(random_normal({1, kLong, heads, kWidth}, name, kF64)), dtype).value();
      };
      const Tensor q = made("q", kHeads), k = made("k", kHeads / 2), v = made("v", kHeads / 2);
      auto outputs = [&](DType of, const std::shared_ptr<Cache>& cache) {
        NoGrad no_grad;
        std::vector<Var> parts;
        for (int64_t begin = 0, count = kPrompt; begin < kLong; begin += count, count = 1) {
          Tokens tokens(plain_tokens(1, count, begin), {.cache = cache});
          auto here = [&](const Tensor& x) { return cast(Var(x.slice(1, begin, begin + count)), of); };
          parts.push_back(tokens.attend(here(q), here(k), here(v), options)[0]);
          EXPECT_EQ(parts.back().dtype(), of);
          tokens.finish_decode_step();
        }
        return doubles(concatenate(parts, 1).value());
      };
      const std::vector<double> exact = outputs(kF64, make_cache(1, kLong));
      auto error = [&](const std::vector<double>& got) {
        double sum = 0, size = 0;
        for (size_t i = 0; i < got.size(); ++i)
          sum += (got[i] - exact[i]) * (got[i] - exact[i]), size += exact[i] * exact[i];
        return std::sqrt(sum / size);
      };
      const double of_one = error(outputs(dtype, make_cache(1, kLong)));
      EXPECT_GT(of_one, 0);
      for (int ranks : {2, 3, 18}) {
        std::vector<std::vector<double>> got(static_cast<size_t>(ranks));
        dist::run_thread_ranks(ranks, [&](dist::Communicator& comm) {
          got[static_cast<size_t>(comm.rank())] = outputs(dtype, make_cache(1, kLong, comm));
        });
        EXPECT_LE(error(got[0]), dtype == kBF16 ? 1.1 * of_one : of_one + 0x1p-24) << str(dtype, ", ", ranks, " ranks");
        for (const std::vector<double>& other : got)
          EXPECT_EQ(other == got[0], true) << str(dtype, ", ", ranks, " ranks");
      }
    }
}

// States and windows do not grow, and full attention says what it needs.
TEST(DecodeOnRanks, WithoutABoundOnTheLength) {
  constexpr int64_t kLong = 60, kDim = 16;
  const Tensor numbers = random_normal({1, kLong, kDim}, "x", kF64);
  auto outputs = [&](const std::shared_ptr<Cache>& cache) {
    NoGrad no_grad;
    const std::unique_ptr<Mixer> layers[] = {
        SoftmaxOptions{.heads = 2, .window = 5}({.dim = kDim, .context = 12}, Rng(2)),
        GlaOptions{.heads = 2}({.dim = kDim, .context = 12}, Rng(3))};
    for (const std::unique_ptr<Mixer>& layer : layers) layer->set_compute(kF64);
    std::vector<Var> parts;
    for (int64_t begin = 0, count = 7; begin < kLong; begin += count, count = 1) {
      Tokens tokens(plain_tokens(1, count, begin), {.cache = cache});
      Var x = numbers.slice(1, begin, begin + count);
      for (const std::unique_ptr<Mixer>& layer : layers) x = x + layer->forward(x, tokens);
      parts.push_back(x);
      tokens.finish_decode_step();
    }
    return doubles(concatenate(parts, 1).value());
  };
  const std::vector<double> expected = outputs(make_cache(1, 0));
  const Var x = Tensor::full({1, 1, 2, 4}, 1, kF32);
  for (int ranks : {2, 3})
    dist::run_thread_ranks(ranks, [&](dist::Communicator& comm) {
      expect_near(outputs(make_cache(1, 0, comm)), expected, 1e-12, str(ranks, " ranks"));
      NoGrad no_grad;
      Tokens tokens(plain_tokens(1, 1), {.cache = make_cache(1, 0, comm)});
      EXPECT_EQ(
          error_of([&] { tokens.attend(x, x, x); }, {"attend: all tokens of a decoding without a bound", "window"}),
          "");
      EXPECT_EQ(error_of([&] { attend_to_every_third(tokens, x); },
                         {"attend: all tokens of a decoding without a bound", "window"}),
                "");
    });
}

// So many results that they meet in pairs.
TEST(DecodeOnRanks, ReadsALongPrompt) {
  NoGrad no_grad;
  constexpr int64_t kLong = 1030, kWide = 511;
  const Tensor q = random_normal({1, kLong, 4, 2}, "q", kF64), k = random_normal({1, kLong, 1, 2}, "k", kF64),
               v = random_normal({1, kLong, 1, kWide}, "v", kF64);
  auto out = [&](const std::shared_ptr<Cache>& cache) {
    Tokens tokens(plain_tokens(1, kLong), {.cache = cache});
    return doubles(tokens.attend(q, k, v)[0].value());
  };
  const std::vector<double> expected = out(make_cache(1, kLong));
  dist::run_thread_ranks(3, [&](dist::Communicator& comm) {
    NoGrad of_this_thread;
    expect_near(out(make_cache(1, kLong, comm)), expected, 1e-12, "out");
  });
}

TEST(DecodeOnRanks, RefusesWhatRanksDoNotHaveAlike) {
  const Var x = Tensor::full({1, 1, 2, 4}, 1, kF32);
  dist::run_thread_ranks(2, [&](dist::Communicator& comm) {
    NoGrad no_grad;
    Tokens tokens(plain_tokens(1, 1), {.cache = make_cache(1, 4, comm)});
    const KeySet keys = tokens.keys(x, x, {.serves_one_call = true});
    EXPECT_EQ(error_of([&] { tokens.column_mass(tokens.queries(x), keys, {}); },
                       {"statistics: of keys that are shared out among the ranks", "KeyOptions::serves_one_call"}),
              "");
    LanguageModel model({.vocab = 5, .dim = 4, .layers = 1, .context = 8}, Rng(1));
    const std::vector<int32_t> prompt{1, comm.rank()};
    EXPECT_EQ(error_of([&] { sample(model, prompt, {.tokens = 1, .ranks = &comm}); },
                       {"rank 1 has another prompt or other options than rank 0", "the same on every rank"}),
              "");
  });
}

}  // namespace
}  // namespace weft
