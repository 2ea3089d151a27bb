// A recurrence over ranks, threads or processes of mpirun, against one call over the whole row on every rank: each rank has two stretches of a
// row, by gathering and by a scan. ContextRecurrence.* has every kind of recurrence and layout, on threads.
#include <algorithm>

#include "tests/distributed/ranks.h"
#include "tests/ops/recurrence_case.h"
#include "weft/distributed/context_recurrence.h"
#include "weft/ops/select.h"

namespace weft::test {
namespace {

using dist::Carry;

// Of rank r the parts r and 2 P - 1 - r of the row.
struct Stretch {
  int64_t begin, end;
};
std::vector<Stretch> stretches(int rank, int ranks, int64_t tokens) {
  const int64_t each = tokens / (2 * ranks), last = 2 * ranks - 1 - rank;
  return {{rank * each, (rank + 1) * each}, {last * each, (last + 1) * each}};
}

dist::SegmentPlan plan_of(int ranks) {
  dist::SegmentPlan plan{.segments = {}, .most = 2};
  for (int part = 0; part < 2 * ranks; ++part) {
    const bool is_second = part >= ranks;
    plan.segments.push_back({.rank = is_second ? 2 * ranks - 1 - part : part,
                             .index = is_second,
                             .comes_in = part > 0,
                             .passes = part > 0});
  }
  return plan;
}

Tensor part_of(const Tensor& x, const std::vector<Stretch>& mine) {
  if (!x.defined()) return x;
  std::vector<Tensor> parts;
  for (const Stretch& s : mine) parts.push_back(x.slice(1, s.begin, s.end));
  return ops::concatenate(parts, 0);
}

TEST(RecurrenceRanks, EqualOneRank) {
  for (int ranks : rank_counts())
    for (DType dtype : {kF64, kF32})
      for_each_kind([&](Gate gate, bool is_delta) {
        const int64_t tokens = 40 * ranks;
        RecurrenceCase c({.B = 1, .T = tokens, .G = 2, .H = 4, .K = 5, .V = 6}, gate, is_delta, dtype);
        const ops::Recurrence want = ops::recur(c.in, c.options);
        const ops::RecurrenceGrads grads = ops::recur_backward(c.dout, {}, c.in, c.options);
        const double allowed = dtype == kF64 ? 1e-11 : 2e-4;
        for (Carry carry : {Carry::gather, Carry::scan})
          run_ranks(ranks, [&](dist::Communicator& comm) {
            const std::vector<Stretch> mine = stretches(comm.rank(), ranks, tokens);
            const dist::SegmentPlan plan = plan_of(ranks);
            ops::RecurrenceInput in = c.in;
            for (Tensor* x : {&in.q_BTGK, &in.k_BTGK, &in.v_BTHV, &in.beta}) *x = part_of(*x, mine);
            if (gate != Gate::head) in.log_decay = part_of(in.log_decay, mine);
            const dist::ContextRecurrence y = dist::context_recur(comm, plan, carry, in, c.options);
            const ops::RecurrenceGrads got =
                dist::context_recur_backward(comm, plan, carry, part_of(c.dout, mine), {}, y, in, c.options);
            auto expect_part = [&](const Tensor& x, const Tensor& all, const char* what) {
              ASSERT_EQ(x.defined(), all.defined()) << what;
              if (x.defined())
                expect_close(x, values(part_of(all, mine)),
                             str(c.name(), ", ", ranks, " ranks, ", to_string(carry), ", ", what), allowed);
            };
            expect_part(y.out, want.out, "out");
            expect_part(got.dq, grads.dq, "dq"), expect_part(got.dk, grads.dk, "dk");
            expect_part(got.dv, grads.dv, "dv"), expect_part(got.dbeta, grads.dbeta, "dbeta");
            if (gate != Gate::head) return expect_part(got.dlog_decay, grads.dlog_decay, "dlog_decay");
            Tensor sum = ops::clone(got.dlog_decay);
            comm.all_reduce(sum);
            expect_close(sum, values(grads.dlog_decay), c.name() + " dlog_decay", allowed);
          });
      });
}

}  // namespace
}  // namespace weft::test
