// Attention over the tokens of the ranks of mpirun, against one call over the whole sequence on every rank.
#include "tests/distributed/context_case.h"
#include "tests/distributed/ranks.h"

namespace weft::test {
namespace {

TEST(ContextAttentionMpi, EqualsOneRankForEveryLayoutAndScheme) {
  for (int ranks : rank_counts()) {
    const int64_t tokens = 16 * ranks;
    Sequence s = make_sequence("", tokens, kF64, {.B = 1, .H = 12, .G = 2, .K = 8, .V = 5});
    s.c.use_biases(true);
    s.c.options.dropout = 0.1;
    use_documents(s, 11);
    s.c.options.mask.window = s.mask.window = 20;
    const Results want = of_one_rank(s.c);
    for (const Layout& layout : {Layout::contiguous(tokens, ranks), Layout::striped(tokens, ranks, 4),
                                 Layout::zigzag(tokens, ranks), Layout::balanced(tokens, ranks, s.mask, 4)})
      for (const SchemeRow& row : scheme_rows(ranks))
        for (const HopPlan& plan : {HopPlan::every_hop(ranks), plan_hops(layout, s.mask)})
          run_ranks(ranks, [&](Communicator& comm) {
            SCOPED_TRACE(str(layout, ", ", row.what));
            const RankCase mine(s.c, layout, comm.rank());
            const dist::ContextRanks of(comm, row.options);
            const ops::Attention y =
                context_attention(of, row.scheme, mine.q, mine.k, mine.v, mine.here, mine.options, plan);
            const ops::AttentionGrads grads = context_attention_backward(
                of, row.scheme, mine.dout, mine.dlse, mine.q, mine.k, mine.v, y, mine.here, mine.options, plan);
            Results of_mine;
            for (const Tensor& all : want) of_mine.push_back(tokens_of(all, mine.positions));
            expect_equal(results_of(y, grads), of_mine, 1e-12);
          });
  }
}

}  // namespace
}  // namespace weft::test
