// The recurrence in two passes, its state alone and the gradient of that alone: against one pass, which other tests hold to the loop.
#include "tests/ops/recurrence_case.h"
#include "tests/support/errors.h"
#include "weft/core/parallel.h"

namespace weft::test {
namespace {

void expect_same(const Tensor& got, const Tensor& want, const std::string& what) {
  ASSERT_EQ(got.defined(), want.defined()) << what;
  if (!want.defined()) return;
  ASSERT_EQ(got.shape(), want.shape()) << what;
  expect_close(got, values(want), what, want.dtype() == kF64 ? 1e-12 : want.dtype() == kF32 ? 1e-4 : 2e-2);
}

// With documents, masked writes and a state, or without.
template <class F>
void for_cases(const RecurrenceSize& size, DType dtype, F&& f) {
  for_each_kind([&](Gate gate, bool is_delta) {
    for (bool has_all : {false, true})
      for (std::optional<int64_t> chunk : {std::optional<int64_t>(), std::optional<int64_t>(8)}) {
        RecurrenceCase c(size, gate, is_delta, dtype);
        c.options.chunk = chunk;
        c.use_state();
        if (has_all) c.use_documents(), c.use_writes();
        f(c);
      }
  });
}

void expect_passes_equal_one(const RecurrenceCase& c) {
  if (c.is_delta) return;
  ops::RecurrenceInput without = c.in;
  without.state = {};
  const ops::RecurrenceStates kept = ops::recur_states(without, c.options);
  const ops::Recurrence want = ops::recur(c.in, c.options);
  Tensor out;
  const Tensor state = ops::recur_into(out, c.in, c.options, &kept);
  expect_same(out, want.out, c.name() + " out"), expect_same(state, want.state, c.name() + " state");
  const int64_t last = kept.states.size(2) - 1;
  expect_same(kept.states.select(2, last), ops::recur(without, c.options).state, c.name() + " state from zeros");
  const ops::RecurrenceGrads grads = ops::recur_backward(c.dout, c.dstate, c.in, c.options);
  ops::RecurrenceGrads got;
  ops::recur_backward_into(got, c.dout, c.dstate, c.in, c.options, {}, &kept);
  expect_same(got.dq, grads.dq, c.name() + " dq"), expect_same(got.dk, grads.dk, c.name() + " dk");
  expect_same(got.dv, grads.dv, c.name() + " dv"), expect_same(got.dstate, grads.dstate, c.name() + " dstate");
  expect_same(got.dlog_decay, grads.dlog_decay, c.name() + " dlog_decay");
  Tensor decayed = want.state;  // less what the tokens write: the state that came in, as the decays left it
  decayed = ops::sub(decayed, kept.states.select(2, last));
  const bool is_of_values = c.options.side == ops::DecaySide::value;
  const Tensor factor = kept.decays.select(2, last).unsqueeze(is_of_values ? 2 : 3);
  expect_same(ops::mul(ops::contiguous(factor), c.in.state), decayed, c.name() + " decays");
}

TEST(RecurrencePasses, TwoAreOne) {
  for (int64_t T : {0, 1, 2, 7, 40, 65, 130})
    for_cases({.B = 2, .T = T, .G = 1, .H = 2, .K = 5, .V = 3}, kF64, expect_passes_equal_one);
  for (DType dtype : {kF32, kBF16})
    for_cases({.B = 1, .T = 100, .G = 2, .H = 4, .K = 16, .V = 24}, dtype, expect_passes_equal_one);
}

// One head for three threads: parts of value columns.
TEST(RecurrencePasses, TwoAreOneInPartsOfValueColumns) {
  const int before = num_threads();
  set_num_threads(3);
  for_cases({.B = 1, .T = 100, .G = 1, .H = 1, .K = 8, .V = 96}, kF32, expect_passes_equal_one);
  set_num_threads(before);
}

TEST(RecurrencePasses, OneOutputAlone) {
  for (int64_t T : {0, 1, 2, 7, 65})
    for_cases({.B = 2, .T = T, .G = 2, .H = 4, .K = 5, .V = 3}, kF64, [](const RecurrenceCase& c) {
      expect_same(ops::recur_state(c.in, c.options), ops::recur(c.in, c.options).state, c.name() + " state");
      const Tensor want = ops::recur_backward(c.dout, c.dstate, c.in, c.options).dstate;
      expect_same(ops::recur_state_gradient(c.dout, c.dstate, c.in, c.options), want, c.name() + " dstate");
      expect_same(ops::recur_state_gradient(c.dout, {}, c.in, c.options),
                  ops::recur_backward(c.dout, {}, c.in, c.options).dstate, c.name() + " dstate of dout");
    });
}

// Heads of larger tensors, whose other heads stay as they are.
TEST(RecurrencePasses, IntoHeadsOfLargerTensors) {
  for_cases({.B = 1, .T = 33, .G = 1, .H = 2, .K = 4, .V = 3}, kF64, [](const RecurrenceCase& c) {
    auto larger = [](const Tensor& like) {
      Shape shape = like.shape();
      shape[2] *= 3;
      return Tensor::full(shape, 5, like.dtype());
    };
    auto middle = [](const Tensor& x) { return x.slice(2, x.size(2) / 3, x.size(2) / 3 * 2); };
    Tensor out = larger(c.in.v_BTHV), dq = larger(c.in.q_BTGK), dk = dq.defined() ? larger(c.in.k_BTGK) : Tensor(),
           dv = larger(c.in.v_BTHV);
    Tensor out_of = middle(out);
    ops::recur_into(out_of, c.in, c.options);
    ops::RecurrenceGrads got{.dq = middle(dq), .dk = middle(dk), .dv = middle(dv)};
    ops::recur_backward_into(got, c.dout, c.dstate, c.in, c.options);
    const ops::RecurrenceGrads want = ops::recur_backward(c.dout, c.dstate, c.in, c.options);
    expect_same(middle(out), ops::recur(c.in, c.options).out, c.name() + " out");
    expect_same(middle(dq), want.dq, c.name() + " dq"), expect_same(middle(dk), want.dk, c.name() + " dk");
    expect_same(middle(dv), want.dv, c.name() + " dv"), expect_same(got.dbeta, want.dbeta, c.name() + " dbeta");
    for (const Tensor* x : {&out, &dq, &dk, &dv})
      for (int64_t part : {0, 2})
        for (double number : values(x->slice(2, part * x->size(2) / 3, (part + 1) * x->size(2) / 3)))
          ASSERT_EQ(number, 5) << c.name();
  });
}

TEST(RecurrencePasses, RefuseTheDeltaRuleAndStatesOfOtherInputs) {
  const RecurrenceCase delta({.B = 1, .T = 9, .G = 1, .H = 1, .K = 2, .V = 2}, Gate::token, true);
  EXPECT_EQ(error_of([&] { ops::recur_states(delta.in, delta.options); },
                     {"recur_states: beta is", "recur_state() with values of 0"}),
            "");
  const RecurrenceCase plain({.B = 1, .T = 9, .G = 1, .H = 1, .K = 2, .V = 2}, Gate::token, false),
      longer({.B = 1, .T = 99, .G = 1, .H = 1, .K = 2, .V = 2}, Gate::token, false);
  const ops::RecurrenceStates kept = ops::recur_states(longer.in, longer.options);
  Tensor out;
  EXPECT_EQ(error_of([&] { ops::recur_into(out, plain.in, plain.options, &kept); },
                     {"recur: kept states are", "pass what recur_states() returned"}),
            "");
}

}  // namespace
}  // namespace weft::test
