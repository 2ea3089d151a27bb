// Of keys and queries only the tokens travel that somebody sees: which those are, the bytes that are sent, and the same results.
#include "distributed/context/route.h"
#include "tests/distributed/context_case.h"
#include "tests/distributed/counting_communicator.h"

namespace weft::test {
namespace {

using dist::TokenRange;

struct Masked {
  std::string what;
  Layout layout;
  TokenMask mask;
};

std::vector<Masked> masked(int64_t tokens, int ranks) {
  TokenMask documents;
  for (int64_t t = 0; t < tokens; ++t)
    documents.documents.push_back(static_cast<int32_t>(t < tokens / 3 ? 0 : 1 + t / 7));
  TokenMask both = documents;
  both.window = 5;
  TokenMask all = documents, prefix = documents;
  all.is_causal = false, prefix.prefix = tokens / 3 + 4;
  return {{"causal", Layout::zigzag(tokens, ranks), {}},
          {"window", Layout::contiguous(tokens, ranks), {.window = 4}},
          {"window over a rank", Layout::contiguous(tokens, ranks), {.window = tokens / ranks + 3}},
          {"window, zigzag", Layout::zigzag(tokens, ranks), {.window = 6}},
          {"documents", Layout::contiguous(tokens, ranks), documents},
          {"documents and a window", Layout::striped(tokens, ranks, 3), both},
          {"all of a document", Layout::contiguous(tokens, ranks), all},
          {"prefix", Layout::zigzag(tokens, ranks), {.prefix = 9}},
          {"prefix and a window", Layout::contiguous(tokens, ranks), {.window = 6, .prefix = tokens / ranks + 5}},
          {"prefix of documents", Layout::striped(tokens, ranks, 2), prefix}};
}

TEST(HopPlan, KnowsWhichKeysAndQueriesAnyPairHas) {
  for (int ranks : {1, 2, 3, 4})
    for (const Masked& m : masked(24 * ranks, ranks)) {
      SCOPED_TRACE(str(m.what, ", ", ranks, " ranks"));
      const HopPlan plan = plan_hops(m.layout, m.mask);
      std::vector<dist::RankTokens> tokens;
      for (int r = 0; r < ranks; ++r) {
        dist::RankTokens& of = tokens.emplace_back();
        for (int row = 0; row < 2; ++row)
          for (int32_t p : m.layout.positions(r)) {
            of.positions.push_back(p);
            if (!m.mask.documents.empty()) of.documents.push_back(m.mask.documents[static_cast<size_t>(p)]);
          }
      }
      const HopPlan of_rows = dist::plan_hops(tokens, 2, m.mask);
      for (int r = 0; r < ranks; ++r)
        for (int s = 0; s < ranks; ++s) {
          const std::vector<int32_t> queries = m.layout.positions(r),
                                     keys = m.layout.positions((r - s + ranks) % ranks);
          TokenRange seen, seeing;
          for (size_t i = 0; i < queries.size(); ++i)
            for (size_t j = 0; j < keys.size(); ++j) {
              const int32_t q = queries[i], k = keys[j];
              auto document = [&](int32_t t) {
                return m.mask.documents.empty() ? 0 : m.mask.documents[static_cast<size_t>(t)];
              };
              const bool is_behind = k <= q || (!m.mask.is_causal && !m.mask.window),
                         is_near = is_behind && (!m.mask.window || q - k < m.mask.window);
              if (document(q) != document(k) || !(is_near || k < m.mask.prefix)) continue;
              const auto at_q = static_cast<int64_t>(i), at_k = static_cast<int64_t>(j);
              seen = seen.joined({at_k, at_k + 1}), seeing = seeing.joined({at_q, at_q + 1});
            }
          for (const HopPlan* of : {&plan, &of_rows}) {
            EXPECT_EQ(of->keys_of(r, s), seen) << r << " " << s;
            EXPECT_EQ(of->queries_of(r, s), seeing) << r << " " << s;
          }
        }
    }
}

// Tokens in any order have no ranges: everything that has work travels as a whole.
TEST(HopPlan, KnowsNoRangesOfTokensOutOfOrder) {
  const std::vector<dist::RankTokens> tokens = {{.positions = {0, 3, 1, 2}}, {.positions = {4, 5, 6, 7}}};
  const HopPlan plan = dist::plan_hops(tokens, 1, {.window = 2});
  EXPECT_EQ(plan.keys_of(1, 1), TokenRange::all());
  EXPECT_TRUE(plan.keys_of(0, 1).is_empty());
}

TEST(ContextHalo, ResultsAreThoseOfOneRankAndBytesThoseOfTheTokensThatAreSeen) {
  for (int ranks : {2, 3, 4}) {
    const int64_t tokens = 24 * ranks;
    for (const Masked& m : masked(tokens, ranks)) {
      Sequence s = make_sequence(m.what, tokens, kF64, {.B = 2, .H = 12, .G = 6, .K = 3, .V = 2});
      s.c.options.mask.window = m.mask.window, s.c.options.mask.prefix = m.mask.prefix;
      s.c.options.mask.is_causal = m.mask.is_causal;
      s.c.use_biases(true);
      if (!m.mask.documents.empty()) {
        Tensor documents = Tensor::empty({2, tokens}, kI32);
        for (int64_t i = 0; i < 2 * tokens; ++i)
          documents.mutable_data<int32_t>()[i] = m.mask.documents[static_cast<size_t>(i % tokens)];
        s.c.queries.documents = s.c.keys.documents = documents;
        s.c.options.mask.same_document = true;
      }
      const Results want = of_one_rank(s.c);
      const HopPlan plan = plan_hops(m.layout, m.mask);
      for (const SchemeRow& row : scheme_rows(ranks)) {
        SCOPED_TRACE(str(m.what, ", ", ranks, " ranks, ", row.what));
        std::mutex mutex;
        dist::MessageBytes most, expected;
        JoinedTokens all;
        dist::run_thread_ranks(ranks, [&](Communicator& inner) {
          CountingCommunicator comm(inner, row.options.node);
          const RankCase mine(s.c, m.layout, comm.rank());
          const dist::ContextRanks of(comm, row.options);
          const ops::Attention y =
              context_attention(of, row.scheme, mine.q, mine.k, mine.v, mine.here, mine.options, plan);
          const int64_t forward = comm.bytes, between = comm.between_nodes;
          const ops::AttentionGrads grads = context_attention_backward(
              of, row.scheme, mine.dout, mine.dlse, mine.q, mine.k, mine.v, y, mine.here, mine.options, plan);
          all.add(mine.positions, results_of(y, grads));
          std::lock_guard lock(mutex);
          most.forward = std::max(most.forward, forward);
          most.backward = std::max(most.backward, comm.bytes - forward);
          most.forward_between_nodes = std::max(most.forward_between_nodes, between);
          most.backward_between_nodes = std::max(most.backward_between_nodes, comm.between_nodes - between);
          expected = message_bytes(row.scheme,
                                   {.ranks = ranks,
                                    .batch = 2,
                                    .tokens = 24,
                                    .heads = 12,
                                    .kv_heads = 6,
                                    .key_width = 3,
                                    .value_width = 2,
                                    .dtype = kF64,
                                    .has_documents = !m.mask.documents.empty(),
                                    .query_bias_heads = 12,
                                    .key_bias_heads = 6,
                                    .bias_dtype = kF64},
                                   row.options, plan);
        });
        expect_equal(all.joined(), want, 1e-12);
        EXPECT_EQ(most.forward, expected.forward);
        EXPECT_EQ(most.backward, expected.backward);
        EXPECT_EQ(most.forward_between_nodes, expected.forward_between_nodes);
        EXPECT_EQ(most.backward_between_nodes, expected.backward_between_nodes);
      }
    }
  }
}

// Of a window that ends in the neighbour's tokens, its last w - 1 keys, and the sums of their gradients.
TEST(ContextHalo, OfAWindowIsOneLessThanTheWindow) {
  const dist::ContextShape shape{
      .ranks = 8, .tokens = 512, .heads = 8, .kv_heads = 2, .key_width = 64, .value_width = 64};
  const HopPlan plan = plan_hops(Layout::contiguous(8 * 512, 8), {.window = 128});
  const int64_t keys = 2 * 2 * 64 * 2, place = 4, sums = 2 * keys;
  for (Scheme scheme : {Scheme::ring, Scheme::bidirectional_ring, Scheme::all_gather}) {
    const dist::MessageBytes sent = message_bytes(scheme, shape, {.backward = Travels::keys}, plan);
    EXPECT_EQ(sent.forward, 127 * (keys + place));
    EXPECT_EQ(sent.backward, 127 * (keys + place) + 127 * sums);
  }
}

}  // namespace
}  // namespace weft::test
