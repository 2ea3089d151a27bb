// Attention over the tokens of the ranks of mpirun, against one call over the whole sequence on every rank.
#include <gtest/gtest.h>

#include "tests/distributed/ranks.h"
#include "tests/ops/attention_case.h"
#include "weft/distributed/context_attention.h"
#include "weft/ops/select.h"

namespace weft::dist {
namespace {

Tensor part_of(const Tensor& x, const std::vector<int32_t>& positions) {
  if (!x.defined()) return {};
  std::vector<Tensor> tokens;
  for (int32_t p : positions) tokens.push_back(x.slice(1, p, p + 1));
  return ops::contiguous(ops::concatenate(tokens, 1));
}

TEST(ContextAttentionMpi, EqualsOneRankForEveryLayoutAndScheme) {
  for (int ranks : test::rank_counts()) {
    const int64_t tokens = 16 * ranks;
    test::AttentionCase c({.B = 1, .T = tokens, .S = tokens, .H = 4, .G = 2, .K = 8, .V = 5}, kF64);
    c.keys = c.queries;
    c.use_biases(true);
    c.use_documents(11);
    CausalMask mask;
    const auto* documents = c.queries.documents.data<int32_t>();
    mask.documents.assign(documents, documents + tokens);
    c.options.mask.window = mask.window = 20;
    const ops::Attention want = c.forward();
    const ops::AttentionGrads want_grads = c.backward(want);
    for (const Layout& layout : {Layout::contiguous(tokens, ranks), Layout::striped(tokens, ranks, 4),
                                 Layout::zigzag(tokens, ranks), Layout::balanced(tokens, ranks, mask, 4)})
      for (Scheme scheme : {Scheme::ring, Scheme::all_gather})
        for (const HopPlan& plan : {HopPlan::every_hop(ranks), plan_hops(layout, mask)})
          test::run_ranks(ranks, [&](Communicator& comm) {
            SCOPED_TRACE(str(layout, ", ", scheme));
            const std::vector<int32_t> mine = layout.positions(comm.rank());
            auto part = [&](const Tensor& x) { return part_of(x, mine); };
            const ops::AttentionTokens here{part(c.queries.positions), part(c.queries.documents)};
            ops::AttentionOptions options = c.options;
            options.score.query_bias = part(c.options.score.query_bias);
            options.score.key_bias = part(c.options.score.key_bias);
            const Tensor q = part(c.q), k = part(c.k), v = part(c.v);
            const ops::Attention y = context_attention(comm, scheme, q, k, v, here, options, plan);
            const ops::AttentionGrads grads = context_attention_backward(
                comm, scheme, part(c.dout), part(c.used_dlse()), q, k, v, y, here, options, plan);
            auto expect_equal = [&](const Tensor& got, const Tensor& all, const char* what) {
              test::expect_near(got, reference::numbers(part(all)), 1e-12, what);
            };
            expect_equal(y.out, want.out, "out");
            expect_equal(y.lse, want.lse, "lse");
            expect_equal(grads.dq, want_grads.dq, "dq");
            expect_equal(grads.dk, want_grads.dk, "dk");
            expect_equal(grads.dv, want_grads.dv, "dv");
            expect_equal(grads.dquery_bias, want_grads.dquery_bias, "dquery_bias");
            expect_equal(grads.dkey_bias, want_grads.dkey_bias, "dkey_bias");
          });
  }
}

}  // namespace
}  // namespace weft::dist
