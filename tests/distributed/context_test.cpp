// Attention over the tokens of ranks that are threads, against one call over the whole sequence: every layout, mask, normaliser and modifier of
// the core under every scheme.
#include "tests/distributed/context_case.h"

namespace weft::test {
namespace {

using ops::Normaliser;

// Numbers of heads that the ranks divide.
AttentionSizes sizes_for(int ranks) {
  const int64_t heads = ranks == 3 ? 6 : 8;
  return {.B = 2, .H = heads, .G = 2, .K = 8, .V = 5};
}

std::vector<Sequence> sequences(int ranks, int64_t tokens, DType dtype) {
  const AttentionSizes sizes = sizes_for(ranks);
  std::vector<Sequence> all;
  auto add = [&](const std::string& what, AttentionSizes of) -> Sequence& {
    all.push_back(make_sequence(what, tokens, dtype, of));
    return all.back();
  };
  add("causal, one row, as many key heads", {.B = 1, .H = sizes.H, .G = sizes.H, .K = 4, .V = 8});
  Sequence& window = add("window", sizes);
  window.c.options.mask.window = window.mask.window = 9;
  Sequence& documents = add("documents with padding, soft cap", sizes);
  use_documents(documents, 7);
  documents.c.options.score.softcap = 3;
  Sequence& prefix = add("prefix, one head for keys", {.B = 1, .H = sizes.H, .G = 1, .K = 4, .V = 4});
  prefix.c.options.mask.prefix = prefix.mask.prefix = 5;
  Sequence& dropout = add("all keys, dropout", sizes);
  dropout.c.options.mask.is_causal = dropout.mask.is_causal = false;
  dropout.c.options.dropout = 0.3;
  Sequence& biases = add("biases of each head, alibi", sizes);
  biases.c.use_biases(false);
  biases.c.options.score.alibi_slopes = alibi_slopes(sizes.H);
  Sequence& shared = add("biases of key heads, window and documents", sizes);
  shared.c.use_biases(true);
  use_documents(shared, 20);
  shared.c.options.mask.window = shared.mask.window = 6;
  for (ops::ScoreActivation activation : {ops::ScoreActivation::sigmoid, ops::ScoreActivation::relu}) {
    Sequence& sum = add(str("sum, activation ", static_cast<int>(activation)), sizes);
    sum.c.options.normaliser = Normaliser::sum;
    sum.c.options.score.activation = activation;
    sum.c.options.score.shift = -0.5;
  }
  Sequence& latent = add("values in the keys", {.B = 1, .H = sizes.H, .G = 1, .K = 8, .V = 5});
  latent.c.v = latent.c.k.slice(3, 0, 5);
  Sequence& is_signed = add("signed softmax, dropout", sizes);
  is_signed.c.options.normaliser = Normaliser::signed_softmax;
  is_signed.c.options.dropout = 0.2, is_signed.c.options.first_row = 3, is_signed.c.options.first_head = 2;
  return all;
}

std::vector<Layout> layouts(int64_t tokens, int ranks, const TokenMask& mask) {
  return {Layout::contiguous(tokens, ranks), Layout::striped(tokens, ranks, 4), Layout::striped(tokens, ranks, 1),
          Layout::zigzag(tokens, ranks), Layout::balanced(tokens, ranks, mask, 4)};
}

// Every layout with the ring, and with every other scheme one after another in turn; every scheme with every sequence. ThreadSanitizer sees those
// with biases, which send the most.
TEST(ContextAttention, EqualsOneRankForEverySchemeLayoutMaskNormaliserAndNumberOfRanks) {
  for (int ranks : {1, 2, 3, 4, 8}) {
    const int64_t tokens = 16 * ranks;  // every layout here divides it
    size_t turn = 0;
    for (const Sequence& s : sequences(ranks, tokens, kF64)) {
      if (!kIsWhole && !s.c.options.score.query_bias.defined()) continue;
      const Results want = of_one_rank(s.c);
      const std::vector<Layout> all = layouts(tokens, ranks, s.mask);
      for (const SchemeRow& row : scheme_rows(ranks)) {
        const bool is_ring = row.scheme == Scheme::ring;
        const std::vector<Layout> these =
            is_ring ? all : std::vector{all[turn++ % all.size()], all[turn++ % all.size()]};
        for (const Layout& layout : these) {
          SCOPED_TRACE(str(s.what, ", ", layout, ", ", row.what));
          ASSERT_EQ(layout.padded_tokens(), tokens);
          expect_equal(of_ranks(s.c, row.scheme, row.options, layout, HopPlan::every_hop(ranks)), want, 1e-12);
          if (s.c.q.size(0) == 1)
            expect_equal(of_ranks(s.c, row.scheme, row.options, layout, plan_hops(layout, s.mask)), want, 1e-12);
        }
      }
    }
  }
}

// With a plan, hops without work are left out, keys stop where nobody needs them, and sums go home from where the last work was.
TEST(ContextAttention, EqualsOneRankWhereThePlanLeavesHopsOut) {
  for (int ranks : {2, 3, 4, 8})
    for (int64_t window : {0, 3, 20}) {
      const int64_t tokens = 16 * ranks;
      Sequence s = make_sequence("", tokens, kF64, {.B = 1, .H = ranks == 3 ? 6 : 8, .G = 2, .K = 4, .V = 4});
      s.c.use_biases(true);
      use_documents(s, 11);
      s.c.options.mask.window = s.mask.window = window;
      const Results want = of_one_rank(s.c);
      bool stops_early = false;
      for (const Layout& layout : layouts(tokens, ranks, s.mask))
        for (const SchemeRow& row : scheme_rows(ranks)) {
          SCOPED_TRACE(str("window ", window, ", ", layout, ", ", row.what));
          const HopPlan plan = plan_hops(layout, s.mask);
          stops_early |= plan.steps < ranks;
          expect_equal(of_ranks(s.c, row.scheme, row.options, layout, plan), want, 1e-12);
        }
      EXPECT_TRUE(stops_early || ranks == 2);
    }
}

// Heads for tokens with more ranks than key heads, and with groups of heads that ranks cut in odd places.
TEST(ContextAttention, UlyssesGivesKeyHeadsToEveryRankThatReadsThem) {
  struct Row {
    int ranks;
    int64_t heads, kv_heads;
  };
  for (const Row& of : {Row{4, 4, 1}, Row{8, 8, 2}, Row{4, 8, 8}, Row{4, 12, 3}, Row{6, 12, 4}, Row{3, 6, 3},
                        Row{2, 6, 3}, Row{8, 24, 12}, Row{5, 10, 2}})
    for (bool are_shared : {true, false}) {
      const int64_t tokens = 8 * of.ranks;
      Sequence s = make_sequence("", tokens, kF64, {.B = 2, .H = of.heads, .G = of.kv_heads, .K = 4, .V = 3});
      s.c.use_biases(are_shared);
      s.c.options.dropout = 0.2;
      SCOPED_TRACE(str(of.ranks, " ranks, ", of.heads, " heads, ", of.kv_heads, " key heads"));
      expect_equal(of_ranks(s.c, Scheme::ulysses, {}, Layout::zigzag(tokens, of.ranks), HopPlan::every_hop(of.ranks)),
                   of_one_rank(s.c), 1e-12);
    }
}

// Against float64: partial results are f32 and rounded once, so more ranks lose no accuracy.
TEST(ContextAttention, ErrorsOfFloat32AndBf16DoNotGrowWithTheNumberOfRanks) {
  for (DType dtype : {kF32, kBF16}) {
    const int64_t tokens = 128;
    Sequence s = make_sequence("", tokens, dtype, {.B = 1, .H = 8, .G = 2, .K = 16, .V = 16});
    AttentionCase exact = s.c;
    for (Tensor* x : {&exact.q, &exact.k, &exact.v, &exact.dout, &exact.dlse}) *x = ops::cast(*x, kF64);
    const Results want = of_one_rank(exact);
    auto error_of = [&](const Results& got) {
      double worst = 0;
      for (size_t i : {0, 2, 3, 4}) {  // out, dq, dk, dv
        const reference::Numbers x = reference::numbers(ops::contiguous(got[i])),
                                 y = reference::numbers(ops::contiguous(want[i]));
        double sum = 0, size = 0;
        for (size_t j = 0; j < x.size(); ++j) sum += (x[j] - y[j]) * (x[j] - y[j]), size += y[j] * y[j];
        worst = std::max(worst, std::sqrt(sum / size));
      }
      return worst;
    };
    const double of_one = error_of(of_one_rank(s.c));
    for (int ranks : {2, 4, 8})
      for (const SchemeRow& row : scheme_rows(ranks)) {
        const double of_many =
            error_of(of_ranks(s.c, row.scheme, row.options, Layout::zigzag(tokens, ranks), HopPlan::every_hop(ranks)));
        EXPECT_LE(of_many, 1.1 * of_one) << str(dtype, ", ", ranks, " ranks, ", row.what);
      }
  }
}

TEST(ContextAttention, GivesTheSameBitsInEveryRun) {
  const int64_t tokens = 64;
  Sequence s = make_sequence("", tokens, kBF16, {.B = 2, .H = 8, .G = 2, .K = 8, .V = 5});
  const Layout layout = Layout::striped(tokens, 4, 4);
  for (const SchemeRow& row : scheme_rows(4)) {
    const Results first = of_ranks(s.c, row.scheme, row.options, layout, HopPlan::every_hop(4));
    for (int run = 0; run < 3; ++run)
      expect_equal(of_ranks(s.c, row.scheme, row.options, layout, HopPlan::every_hop(4)), first, 0);
  }
}

// The order of hops is the same, so is every bit of the forward.
TEST(ContextAttention, RingAndAllGatherHaveTheSameBitsInForward) {
  const int64_t tokens = 64;
  Sequence s = make_sequence("", tokens, kF32, {.B = 2, .H = 8, .G = 2, .K = 8, .V = 5});
  const Layout layout = Layout::zigzag(tokens, 4);
  const HopPlan plan = HopPlan::every_hop(4);
  const Results ring = of_ranks(s.c, Scheme::ring, {}, layout, plan);
  for (int64_t at_once : {0, 1}) {
    const Results gathered = of_ranks(s.c, Scheme::all_gather, {.heads_at_once = at_once}, layout, plan);
    expect_same_bits(gathered[0], ring[0], "out"), expect_same_bits(gathered[1], ring[1], "lse");
  }
}

// Numbers of ranks that are no power of two, and primes.
TEST(ContextAttention, EqualsOneRankOnOddNumbersOfRanks) {
  for (int ranks : {5, 6, 7}) {
    const int64_t tokens = 8 * ranks;
    Sequence s = make_sequence("", tokens, kF64, {.B = 1, .H = 2 * ranks, .G = 2, .K = 4, .V = 3});
    s.c.use_biases(true);
    s.c.options.dropout = 0.1;
    use_documents(s, 9);
    const Results want = of_one_rank(s.c);
    const Layout layout = Layout::zigzag(tokens, ranks);
    for (const SchemeRow& row : scheme_rows(ranks))
      for (const HopPlan& plan : {HopPlan::every_hop(ranks), plan_hops(layout, s.mask)}) {
        SCOPED_TRACE(str(ranks, " ranks, ", row.what));
        expect_equal(of_ranks(s.c, row.scheme, row.options, layout, plan), want, 1e-12);
      }
  }
}

// The logs of the sums of the sizes of weights, which attention_statistics() reads.
Tensor log_sizes(const AttentionCase& c) {
  const reference::AttentionReference of(c.q, c.k, c.v, c.queries, c.keys, c.options);
  return Tensor::from(std::span<const double>(of.log_sizes), {c.q.size(0), c.q.size(1), c.q.size(2)});
}

TEST(ContextAttention, StatisticsAreThoseOfOneRank) {
  for (int ranks : {1, 2, 3, 4, 8}) {
    const int64_t tokens = 16 * ranks;
    for (const Sequence& s : sequences(ranks, tokens, kF64)) {
      const Tensor lse = log_sizes(s.c);
      const ops::AttentionStatistics want =
          ops::attention_statistics(s.c.q, s.c.k, lse, s.c.queries, s.c.keys, s.c.options);
      for (const SchemeRow& row : scheme_rows(ranks)) {
        SCOPED_TRACE(str(s.what, ", ", ranks, " ranks, ", row.what));
        const Layout layout = Layout::zigzag(tokens, ranks);
        JoinedTokens all;
        dist::run_thread_ranks(ranks, [&](Communicator& comm) {
          const RankCase mine(s.c, layout, comm.rank());
          const ops::AttentionStatistics of =
              context_statistics({comm, row.options}, row.scheme, mine.q, mine.k, tokens_of(lse, mine.positions),
                                 mine.here, mine.options, HopPlan::every_hop(ranks));
          all.add(mine.positions, {of.column_mass, of.entropy, of.max_score});
        });
        const std::vector<Tensor> got = all.joined();
        expect_near(got[0], reference::numbers(want.column_mass), 2e-6, "column mass");
        expect_near(got[1], reference::numbers(want.entropy), 2e-6, "entropy");
        expect_near(got[2], reference::numbers(want.max_score), 2e-6, "largest score");
      }
    }
  }
}

}  // namespace
}  // namespace weft::test
