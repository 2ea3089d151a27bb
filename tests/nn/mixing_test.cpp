// The calls through which tokens see each other, against plain float64 loops: in any order of the tokens, with documents and padding.
#include "src/nn/mixing/mixing.h"

#include "tests/nn/mixing_support.h"
#include "tests/reference/conv.h"
#include "tests/support/errors.h"
#include "weft/autograd/gradient_check.h"
#include "weft/nn/mixers.h"

namespace weft {
namespace {

using namespace mixing_test;
using test::error_of;
using test::random_normal;

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
        if (n >= kTokens)  // the window holds all
          expect_near(without_padding(tokens.scan(in).value().to_vector<double>()), without_padding(layout.here(sums)),
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

ops::AttentionOptions attention(int64_t window, bool is_sigmoid) {
  ops::AttentionOptions options{.mask = {.window = window}};
  if (is_sigmoid) options.normaliser = ops::Normaliser::sum, options.score.activation = ops::ScoreActivation::sigmoid;
  return options;
}

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

TEST(Attend, DropsInARowWhatItDropsAmongAllRows) {
  const Tensor q = random_normal({kBatch, kTokens, 4, 6}, "q", kF64),
               k = random_normal({kBatch, kTokens, 2, 6}, "k", kF64),
               v = random_normal({kBatch, kTokens, 2, 5}, "v", kF64);
  const ops::AttentionOptions options{.dropout = 0.4, .dropout_rng = Rng(3)};
  Ints which;
  for (int32_t t = 0; t < kTokens; ++t) which.push_back(t);
  std::vector<std::vector<double>> results;
  for (int64_t first_row : {0, 5}) {
    TokenData data = Layout(false, true).data;
    data.first_row = first_row;
    Tokens tokens(data, {.is_training = true});
    const KeySet keys = tokens.keys(k, v);
    const std::vector<double> all = doubles(tokens.attend_part(tokens.queries(q), keys, options)[0].value());
    std::vector<double> row_by_row;
    for (int64_t b = 0; b < kBatch; ++b) {
      const QuerySet of_row = tokens.queries(q.slice(0, b, b + 1), b, which);
      const auto part = doubles(tokens.attend_part(of_row, keys.rows()[static_cast<size_t>(b)], options)[0].value());
      row_by_row.insert(row_by_row.end(), part.begin(), part.end());
    }
    expect_near(row_by_row, all, 1e-12, str("first row ", first_row));
    results.push_back(all);
  }
  EXPECT_NE(results[0], results[1]) << "other rows of a step drop other weights";
}

TEST(ColumnMass, IsThatOfWeightsBeforeDropout) {
  const Tensor q = random_normal({kBatch, kTokens, 4, 6}, "q", kF64),
               k = random_normal({kBatch, kTokens, 2, 6}, "k", kF64);
  const Layout layout(true, true);
  Tokens tokens(layout.data, {.is_training = true});
  for (bool is_sigmoid : {false, true}) {
    ops::AttentionOptions options = attention(0, is_sigmoid);
    options.dropout = 0.5, options.dropout_rng = Rng(3);
    const QuerySet queries = tokens.queries(q);
    const KeySet keys = tokens.keys(k, k);
    Var lse = tokens.attend_part(queries, keys, options)[1];
    expect_near(doubles(tokens.column_mass(queries, keys, lse, options)), masses(q, k, layout.data, 0, is_sigmoid),
                1e-5, str("sigmoid ", is_sigmoid));
  }
}

TEST(Gather, SaysWhereEachOfTheseIs) {
  const std::vector<double> x = random_normal({kBatch, kTokens}, "x", kF64).to_vector<double>();
  for (bool has_documents : {false, true}) {
    const Layout layout(true, has_documents);
    Tokens tokens(layout.data);
    const Var mine[] = {Var(tensor(layout.here(x), {kBatch, kTokens, 1}))};
    const std::vector<double> all = doubles(tokens.gather(mine)[0].value()), here = layout.here(x);
    const auto places = tokens.gathered_places();
    ASSERT_EQ(places.size(), here.size());
    for (size_t i = 0; i < places.size(); ++i)
      EXPECT_EQ(all[i / kTokens * kTokens + static_cast<size_t>(places[i])], here[i]) << i;
  }
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
  Var recur(const RecurrenceVars& input, const ops::RecurrenceOptions& options) override {
    return ++counts_[2], inner_->recur(input, options);
  }
  Var recur_chunks(const RecurrenceVars& input, const ops::RecurrenceOptions& options, const Chunks& chunks) override {
    return ++counts_[2], inner_->recur_chunks(input, options, chunks);
  }
  Var decay_scan(const Var& x, const Var& log_decay) override { return ++counts_[2], inner_->decay_scan(x, log_decay); }
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
