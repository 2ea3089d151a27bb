// The whole product for attention over ranks, in f64: every layout, scheme, mask and normaliser, key heads from one to as many as query heads,
// on 2, 3, 4 and 8 ranks. Blocks of 4 tokens, three of them on each rank, and a length that does not divide. Ranks are threads. ThreadSanitizer sees
// one mask with grouped heads: which threads meet where does not depend on them.
#include <atomic>
#include <cstdio>

#include "tests/distributed/context_case.h"

namespace weft::test {
namespace {

using ops::Normaliser;
using ops::ScoreActivation;

constexpr int64_t kBlock = 4;

struct MaskRow {
  const char* what;
  ops::AttentionMask mask = {};
  int64_t document = 0;  // tokens of each; 0: all are of one
};
const MaskRow kMasks[] = {
    {"causal"},
    {"window", {.window = 9}},
    {"documents", {}, 7},
    {"window in documents", {.window = 5}, 11},
    {"prefix", {.prefix = 5}},
    {"prefix in documents", {.prefix = 13}, 9},
    {"all", {.is_causal = false}},
    {"all in documents", {.is_causal = false}, 8},
};

struct WeightRow {
  const char* what;
  Normaliser normaliser;
  ScoreActivation activation = ScoreActivation::none;
};

Sequence sequence_of(const MaskRow& mask, const WeightRow& weights, int64_t heads, int64_t kv_heads, int64_t tokens) {
  Sequence s = make_sequence(mask.what, tokens, kF64, {.B = 1, .H = heads, .G = kv_heads, .K = 4, .V = 3});
  s.c.options.mask = mask.mask;
  s.mask = {.window = mask.mask.window, .is_causal = mask.mask.is_causal, .prefix = mask.mask.prefix};
  s.c.options.normaliser = weights.normaliser;
  if (weights.normaliser == Normaliser::sum)
    s.c.options.score.activation = weights.activation, s.c.options.score.shift = -0.5;
  if (mask.document > 0) use_documents(s, mask.document);
  return s;
}

// The tokens of a layout that pads: those at the end are of no document, and large numbers.
AttentionCase padded(const AttentionCase& c, int64_t to) {
  const int64_t N = c.q.size(1), more = to - N;
  AttentionCase out = c;
  if (more == 0) return out;
  for (Tensor* x : {&out.q, &out.k, &out.v, &out.dout, &out.dlse}) {
    Shape shape = x->shape();
    shape[1] = more;
    const Tensor parts[] = {*x, Tensor::full(shape, 1e3, x->dtype())};
    *x = ops::concatenate(parts, 1);
  }
  Tensor documents = Tensor::zeros({1, N}, kI32), places = make_positions(1, to, Order::sorted, 1);
  const Tensor parts[] = {c.queries.documents.defined() ? c.queries.documents : documents,
                          Tensor::full({1, more}, -1, kI32)};
  out.queries = out.keys = {places, ops::concatenate(parts, 1)};
  out.options.mask.same_document = true;
  return out;
}

// A rank's results: of its tokens those of one rank, of padding nothing.
void expect_rank_equal(const Results& got, const Results& want, const std::vector<int32_t>& positions, int64_t tokens) {
  std::vector<int32_t> real;
  for (int32_t p : positions)
    if (p < tokens) real.push_back(p);
  const auto n = static_cast<int64_t>(real.size()), all = static_cast<int64_t>(positions.size());
  Results of_tokens, expected;
  for (size_t i = 0; i < got.size(); ++i) {
    of_tokens.push_back(got[i].defined() ? got[i].slice(1, 0, n) : got[i]);
    expected.push_back(tokens_of(want[i], real));
  }
  expect_equal(of_tokens, expected, 1e-12);
  for (size_t i : {0, 2, 3, 4})  // out, dq, dk, dv
    for (double x : reference::numbers(ops::contiguous(got[i].slice(1, n, all)))) ASSERT_EQ(x, 0) << "padding";
}

// Every layout under every scheme that takes so many heads, in both passes. How many there were.
int64_t expect_product(int ranks, int64_t heads, const Sequence& s) {
  const int64_t tokens = s.c.q.size(1);
  const Results want = of_one_rank(s.c);
  const Layout layouts[] = {Layout::contiguous(tokens, ranks), Layout::striped(tokens, ranks, kBlock),
                            Layout::zigzag(tokens, ranks), Layout::balanced(tokens, ranks, s.mask, kBlock)};
  std::atomic<int64_t> count = 0;
  dist::run_thread_ranks(ranks, [&](Communicator& comm) {
    for (const Layout& layout : layouts) {
      const RankCase mine(padded(s.c, layout.padded_tokens()), layout, comm.rank());
      const HopPlan plan = plan_hops(layout, s.mask);
      for (Scheme scheme : dist::all_schemes()) {
        SCOPED_TRACE(str(s.what, ", ", layout, ", ", to_string(scheme), ", ", s.c.k.size(2), " of ", heads, " heads"));
        const dist::ContextRanks of(comm, dist::default_options(scheme, ranks, heads));
        const ops::Attention y = context_attention(of, scheme, mine.q, mine.k, mine.v, mine.here, mine.options, plan);
        const ops::AttentionGrads grads = context_attention_backward(of, scheme, mine.dout, mine.dlse, mine.q, mine.k,
                                                                     mine.v, y, mine.here, mine.options, plan);
        expect_rank_equal(results_of(y, grads), want, mine.positions, tokens);
        if (comm.rank() == 0) ++count;
      }
    }
  });
  return count;
}

void expect_whole_product(const WeightRow& weights) {
  int64_t count = 0;
  for (int ranks : {2, 3, 4, 8}) {
    const int64_t heads = ranks == 3 ? 6 : 8, tokens = 3 * kBlock * ranks - 3;
    for (int64_t kv_heads : {heads, int64_t{2}, int64_t{1}})
      for (const MaskRow& mask : kMasks) {
        if (!kIsWhole && (kv_heads != 2 || std::string_view(mask.what) != "window in documents")) continue;
        count += expect_product(ranks, heads, sequence_of(mask, weights, heads, kv_heads, tokens));
        if (::testing::Test::HasFailure()) return;
      }
  }
  if (!kIsWhole) return;
  // tools/test puts it into its summary.
  std::printf(
      "conformance: ranks: the core by %s in %d spreads: 4 layouts, 6 schemes, 8 masks, 3 groups of heads, 4 numbers "
      "of ranks\n",
      weights.what, static_cast<int>(count));
}

TEST(ContextProduct, OfSoftmaxEqualsOneRank) { expect_whole_product({"softmax", Normaliser::softmax}); }
TEST(ContextProduct, OfSignedSoftmaxEqualsOneRank) {
  expect_whole_product({"signed softmax", Normaliser::signed_softmax});
}
TEST(ContextProduct, OfSigmoidsEqualsOneRank) {
  expect_whole_product({"sigmoid", Normaliser::sum, ScoreActivation::sigmoid});
}
TEST(ContextProduct, OfRelusEqualsOneRank) { expect_whole_product({"relu", Normaliser::sum, ScoreActivation::relu}); }

}  // namespace
}  // namespace weft::test
