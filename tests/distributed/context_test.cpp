// Attention over the tokens of ranks that are threads, against one call over the whole sequence: every layout, mask, normaliser and modifier of the core.
#include <gtest/gtest.h>

#include <mutex>

#include "tests/ops/attention_case.h"
#include "tests/support/errors.h"
#include "weft/distributed/context_attention.h"
#include "weft/ops/select.h"

namespace weft::dist {
namespace {

using ops::Normaliser;

constexpr Scheme kSchemes[] = {Scheme::ring, Scheme::all_gather};

// The tokens of a rank, of x [B, N, ...]; undefined stays so.
Tensor part_of(const Tensor& x, const std::vector<int32_t>& positions) {
  if (!x.defined()) return {};
  std::vector<Tensor> tokens;
  for (int32_t p : positions) tokens.push_back(x.slice(1, p, p + 1));
  return ops::contiguous(ops::concatenate(tokens, 1));
}

struct Sequence {
  std::string what;
  test::AttentionCase c;
  CausalMask mask;
  bool has_plan = true;  // a mask that plan_hops() knows
};

// A case whose queries and keys are the tokens 0 .. N - 1.
Sequence make(const std::string& what, int64_t tokens, DType dtype,
              test::AttentionSizes sizes = {.B = 2, .H = 4, .G = 2, .K = 8, .V = 5}) {
  sizes.T = sizes.S = tokens;
  Sequence s{what, test::AttentionCase(sizes, dtype), {}};
  s.c.keys = s.c.queries = {test::make_positions(sizes.B, tokens, test::Order::sorted, 1), {}};
  return s;
}

void use_documents(Sequence& s, int64_t length) {
  s.c.use_documents(length);
  const auto* documents = s.c.queries.documents.data<int32_t>();
  s.mask.documents.assign(documents, documents + s.c.q.size(1));
}

std::vector<Sequence> sequences(int64_t tokens, DType dtype) {
  std::vector<Sequence> all;
  all.push_back(make("causal", tokens, dtype));
  all.push_back(make("window", tokens, dtype));
  all.back().c.options.mask.window = all.back().mask.window = 9;
  all.push_back(make("documents with padding, soft cap", tokens, dtype));
  use_documents(all.back(), 7);
  all.back().c.options.score.softcap = 3;
  all.push_back(make("prefix, one head for keys", tokens, dtype, {.B = 1, .H = 3, .G = 1, .K = 4, .V = 4}));
  all.back().c.options.mask.prefix = 5, all.back().has_plan = false;
  all.push_back(make("all keys, dropout", tokens, dtype));
  all.back().c.options.mask.is_causal = false, all.back().has_plan = false;
  all.back().c.options.dropout = 0.3;
  all.push_back(make("biases of each head, alibi", tokens, dtype));
  all.back().c.use_biases(false);
  all.back().c.options.score.alibi_slopes = test::alibi_slopes(4);
  all.push_back(make("biases of key heads, window and documents", tokens, dtype));
  all.back().c.use_biases(true);
  use_documents(all.back(), 20);
  all.back().c.options.mask.window = all.back().mask.window = 6;
  for (ops::ScoreActivation activation : {ops::ScoreActivation::sigmoid, ops::ScoreActivation::relu}) {
    all.push_back(make(str("sum, activation ", static_cast<int>(activation)), tokens, dtype));
    all.back().c.options.normaliser = Normaliser::sum;
    all.back().c.options.score.activation = activation;
    all.back().c.options.score.shift = -0.5;
  }
  all.push_back(make("signed softmax", tokens, dtype));
  all.back().c.options.normaliser = Normaliser::signed_softmax;
  return all;
}

std::vector<Layout> layouts(int64_t tokens, int ranks, const CausalMask& mask) {
  return {Layout::contiguous(tokens, ranks), Layout::striped(tokens, ranks, 4), Layout::striped(tokens, ranks, 1),
          Layout::zigzag(tokens, ranks), Layout::balanced(tokens, ranks, mask, 4)};
}

struct Results {
  ops::Attention y;
  ops::AttentionGrads grads;
};

Results of_one_rank(const test::AttentionCase& c) {
  Results r{c.forward(), {}};
  r.grads = c.backward(r.y);
  return r;
}

// What each rank computes, put together in the order of positions.
Results of_ranks(const test::AttentionCase& c, Scheme scheme, const Layout& layout, const HopPlan& plan) {
  std::mutex mutex;
  std::vector<std::pair<std::vector<int32_t>, Results>> parts;
  run_thread_ranks(layout.ranks(), [&](Communicator& comm) {
    const std::vector<int32_t> mine = layout.positions(comm.rank());
    auto part = [&](const Tensor& x) { return part_of(x, mine); };
    const ops::AttentionTokens here{part(c.queries.positions), part(c.queries.documents)};
    ops::AttentionOptions options = c.options;
    options.score.query_bias = part(c.options.score.query_bias);
    options.score.key_bias = part(c.options.score.key_bias);
    const Tensor q = part(c.q), k = part(c.k), v = part(c.v);
    Results r;
    r.y = context_attention(comm, scheme, q, k, v, here, options, plan);
    r.grads =
        context_attention_backward(comm, scheme, part(c.dout), part(c.used_dlse()), q, k, v, r.y, here, options, plan);
    std::lock_guard lock(mutex);
    parts.emplace_back(mine, r);
  });
  auto joined = [&](auto member) {
    std::vector<Tensor> tokens(static_cast<size_t>(layout.padded_tokens()));
    for (const auto& [positions, r] : parts) {
      const Tensor& x = member(r);
      if (!x.defined()) return Tensor();
      for (size_t i = 0; i < positions.size(); ++i)
        tokens[static_cast<size_t>(positions[i])] = x.slice(1, static_cast<int64_t>(i), static_cast<int64_t>(i) + 1);
    }
    return ops::concatenate(tokens, 1);
  };
  Results all;
  all.y.out = joined([](const Results& r) -> const Tensor& { return r.y.out; });
  all.y.lse = joined([](const Results& r) -> const Tensor& { return r.y.lse; });
  all.grads.dq = joined([](const Results& r) -> const Tensor& { return r.grads.dq; });
  all.grads.dk = joined([](const Results& r) -> const Tensor& { return r.grads.dk; });
  all.grads.dv = joined([](const Results& r) -> const Tensor& { return r.grads.dv; });
  all.grads.dquery_bias = joined([](const Results& r) -> const Tensor& { return r.grads.dquery_bias; });
  all.grads.dkey_bias = joined([](const Results& r) -> const Tensor& { return r.grads.dkey_bias; });
  return all;
}

void expect_equal(const Results& got, const Results& want, double tolerance) {
  auto numbers = [](const Tensor& x) { return reference::numbers(x.defined() ? ops::contiguous(x) : x); };
  test::expect_near(got.y.out, numbers(want.y.out), tolerance, "out");
  test::expect_near(got.y.lse, numbers(want.y.lse), tolerance, "lse");
  test::expect_near(got.grads.dq, numbers(want.grads.dq), tolerance, "dq");
  test::expect_near(got.grads.dk, numbers(want.grads.dk), tolerance, "dk");
  test::expect_near(got.grads.dv, numbers(want.grads.dv), tolerance, "dv");
  test::expect_near(got.grads.dquery_bias, numbers(want.grads.dquery_bias), tolerance, "dquery_bias");
  test::expect_near(got.grads.dkey_bias, numbers(want.grads.dkey_bias), tolerance, "dkey_bias");
}

TEST(ContextAttention, EqualsOneRankForEveryLayoutMaskNormaliserAndNumberOfRanks) {
  for (int ranks : {1, 2, 3, 4, 8}) {
    const int64_t tokens = 16 * ranks;  // every layout here divides it
    for (const Sequence& s : sequences(tokens, kF64)) {
      const Results want = of_one_rank(s.c);
      for (const Layout& layout : layouts(tokens, ranks, s.mask))
        for (Scheme scheme : kSchemes) {
          SCOPED_TRACE(str(s.what, ", ", layout, ", ", scheme));
          ASSERT_EQ(layout.padded_tokens(), tokens);
          expect_equal(of_ranks(s.c, scheme, layout, HopPlan::every_hop(ranks)), want, 1e-12);
          if (s.has_plan && s.c.q.size(0) == 1)
            expect_equal(of_ranks(s.c, scheme, layout, plan_hops(layout, s.mask)), want, 1e-12);
        }
    }
  }
}

// With a plan, hops without work are left out and the ring stops early; accumulators then go home in one message.
TEST(ContextAttention, EqualsOneRankWhereThePlanLeavesHopsOut) {
  for (int ranks : {2, 3, 4, 8})
    for (int64_t window : {0, 3, 20}) {
      const int64_t tokens = 16 * ranks;
      Sequence s = make("", tokens, kF64, {.B = 1, .H = 2, .G = 1, .K = 4, .V = 4});
      s.c.use_biases(true);
      use_documents(s, 11);
      s.c.options.mask.window = s.mask.window = window;
      const Results want = of_one_rank(s.c);
      bool stops_early = false;
      for (const Layout& layout : layouts(tokens, ranks, s.mask))
        for (Scheme scheme : kSchemes) {
          SCOPED_TRACE(str("window ", window, ", ", layout, ", ", scheme));
          const HopPlan plan = plan_hops(layout, s.mask);
          stops_early |= plan.steps < ranks;
          expect_equal(of_ranks(s.c, scheme, layout, plan), want, 1e-12);
        }
      EXPECT_TRUE(stops_early || ranks == 2);
    }
}

// Against float64: partial results are f32 and rounded once, so more ranks lose no accuracy.
TEST(ContextAttention, ErrorsOfFloat32AndBf16DoNotGrowWithTheNumberOfRanks) {
  for (DType dtype : {kF32, kBF16}) {
    const int64_t tokens = 128;
    Sequence s = make("", tokens, dtype, {.B = 1, .H = 4, .G = 2, .K = 16, .V = 16});
    test::AttentionCase exact = s.c;
    for (Tensor* x : {&exact.q, &exact.k, &exact.v, &exact.dout, &exact.dlse}) *x = ops::cast(*x, kF64);
    const Results want = of_one_rank(exact);
    auto error_of = [&](const Results& got) {
      double worst = 0;
      auto look = [&](const Tensor& a, const Tensor& b) {
        const reference::Numbers x = reference::numbers(ops::contiguous(a)), y = reference::numbers(ops::contiguous(b));
        double sum = 0, size = 0;
        for (size_t i = 0; i < x.size(); ++i) sum += (x[i] - y[i]) * (x[i] - y[i]), size += y[i] * y[i];
        worst = std::max(worst, std::sqrt(sum / size));
      };
      look(got.y.out, want.y.out), look(got.grads.dq, want.grads.dq), look(got.grads.dk, want.grads.dk);
      look(got.grads.dv, want.grads.dv);
      return worst;
    };
    const double of_one = error_of(of_one_rank(s.c));
    for (int ranks : {2, 4, 8})
      for (Scheme scheme : kSchemes) {
        const double of_many =
            error_of(of_ranks(s.c, scheme, Layout::zigzag(tokens, ranks), HopPlan::every_hop(ranks)));
        EXPECT_LE(of_many, 1.2 * of_one) << str(dtype, ", ", ranks, " ranks");
      }
  }
}

TEST(ContextAttention, GivesTheSameBitsInEveryRun) {
  const int64_t tokens = 64;
  Sequence s = make("", tokens, kBF16);
  const Layout layout = Layout::striped(tokens, 4, 4);
  for (Scheme scheme : kSchemes) {
    const Results first = of_ranks(s.c, scheme, layout, HopPlan::every_hop(4));
    for (int run = 0; run < 5; ++run) expect_equal(of_ranks(s.c, scheme, layout, HopPlan::every_hop(4)), first, 0);
  }
}

TEST(ContextAttention, APlanOfAnotherNumberOfRanksIsRefused) {
  Sequence s = make("", 8, kF32);
  auto comm = make_self_communicator();
  EXPECT_EQ(test::error_of(
                [&] {
                  context_attention(*comm, Scheme::ring, s.c.q, s.c.k, s.c.v, s.c.queries, s.c.options,
                                    HopPlan::every_hop(2));
                },
                {"a plan of 2 ranks for 1", "of this communicator"}),
            "");
}

}  // namespace
}  // namespace weft::dist
