// What went wrong in recurrences elsewhere, and forms of the recurrence that must be the same: gates of exactly 0, lengths behind 2^16, memory
// behind the inputs, expanded gradients, residuals of nearly equal numbers, the matrix form of the delta rule.
#include <gtest/gtest.h>

#include "tests/ops/recurrence_case.h"

namespace weft::test {
namespace {

constexpr double kClosed = -1e4;  // the floor of gates: a decay of exactly 0 in every dtype

// The loop multiplies the state by 0 there; decays of usual size stand before and behind, in the same chunk.
TEST(RecurrenceEdges, AGateOfZeroEqualsTheLoop) {
  for_each_kind([](Gate gate, bool is_delta) {
    if (gate == Gate::none || gate == Gate::head) return;
    for (DType dtype : {kF64, kF32})
      for (int64_t every : {1, 2, 5, 40}) {
        RecurrenceCase c({.B = 1, .T = 97, .G = 1, .H = 2, .K = 4, .V = 3}, gate, is_delta, dtype, 0.3);
        const int64_t per_token = c.in.log_decay.num_elements() / 97;
        for (int64_t i = 0; i < c.in.log_decay.num_elements(); ++i) {
          if (i / per_token % every != 0 || (per_token > 2 && every > 2 && i % 3 == 0)) continue;
          if (dtype == kF64) c.in.log_decay.mutable_data<double>()[i] = kClosed;
          else c.in.log_decay.mutable_data<float>()[i] = static_cast<float>(kClosed);
        }
        c.use_state();
        SCOPED_TRACE(str("closed every ", every, " tokens"));
        c.expect_forward();
        c.expect_gradients(dtype == kF64 ? 2e-7 : 2e-3);
      }
  });
}

TEST(RecurrenceEdges, TheTailBehind65536TokensIsCounted) {
  constexpr int64_t T = 65537;
  for (DType dtype : {kF32, kBF16}) {
    const Tensor ones = Tensor::full({1, T, 1, 1}, 1, dtype);
    const ops::Recurrence sums = ops::recur({.q_BTGK = ones, .k_BTGK = ones, .v_BTHV = ones});
    EXPECT_EQ(sums.state.item(), T);
    if (dtype == kF32) { EXPECT_EQ(sums.out.to_vector<float>().back(), static_cast<float>(T)); }
    // Half of what is missing to 1 is written each time: the state is 1 from the second token on to rounding, also at the end.
    const Tensor half = Tensor::full({1, T, 1}, 0.5, kF32);
    const ops::Recurrence delta = ops::recur({.q_BTGK = ones, .k_BTGK = ones, .v_BTHV = ones, .beta = half});
    EXPECT_NEAR(delta.state.item(), 1, 1e-6);
    const ops::RecurrenceGrads grads = ops::recur_backward(ones, {}, {.q_BTGK = ones, .k_BTGK = ones, .v_BTHV = ones});
    const Numbers dv = values(grads.dv);  // of token t: how many read it
    EXPECT_EQ(dv.back(), 1);
    EXPECT_EQ(dv[T - 2], 2);
    if (dtype == kF32) { EXPECT_EQ(dv.front(), T); }
  }
}

// x, with as many tokens again behind it in memory, all NaN.
Tensor before_nan(const Tensor& x) {
  if (!x.defined() || x.num_dims() < 3) return x;
  Shape twice = x.shape();
  twice[1] *= 2;
  Tensor all = Tensor::full(twice, std::nan(""), x.dtype()), place = all.slice(1, 0, x.size(1));
  ops::copy_(place, x);
  return place;
}

TEST(RecurrenceEdges, MemoryBehindTheInputsIsNotRead) {
  for_each_kind([](Gate gate, bool is_delta) {
    for (DType dtype : {kF32, kF64}) {
      RecurrenceCase c({.B = 1, .T = 65, .G = 1, .H = 2, .K = 4, .V = 3}, gate, is_delta, dtype);
      c.use_state();
      const ops::Recurrence want = ops::recur(c.in, c.options);
      const ops::RecurrenceGrads grads = ops::recur_backward(c.dout, c.dstate, c.in, c.options);
      for (Tensor* t : {&c.in.q_BTGK, &c.in.k_BTGK, &c.in.v_BTHV, &c.in.log_decay, &c.in.beta}) *t = before_nan(*t);
      const ops::Recurrence got = ops::recur(c.in, c.options);
      const ops::RecurrenceGrads again = ops::recur_backward(before_nan(c.dout), c.dstate, c.in, c.options);
      EXPECT_EQ(values(got.out), values(want.out)) << c.name();
      EXPECT_EQ(values(got.state), values(want.state)) << c.name();
      for (auto grad : {&ops::RecurrenceGrads::dq, &ops::RecurrenceGrads::dk, &ops::RecurrenceGrads::dv,
                        &ops::RecurrenceGrads::dlog_decay, &ops::RecurrenceGrads::dbeta, &ops::RecurrenceGrads::dstate})
        EXPECT_EQ(numbers_or_none(again.*grad), numbers_or_none(grads.*grad)) << c.name();
    }
  });
}

// The gradient of a sum is one number, repeated with stride 0.
TEST(RecurrenceEdges, ExpandedGradientsAreRead) {
  for_each_kind([](Gate gate, bool is_delta) {
    RecurrenceCase c({.B = 2, .T = 33, .G = 1, .H = 2, .K = 4, .V = 3}, gate, is_delta);
    c.use_state();
    const Tensor one = Tensor::full({1, 1, 1, 1}, 1, kF64);
    c.dout = one.expand(c.dout.shape()), c.dstate = one.expand(c.dstate.shape());
    c.expect_gradients();
  });
}

// The state answers 4098 where 4096 is to be written: the difference of -2 is lost if either is rounded to bf16 first.
TEST(RecurrenceEdges, ResidualsAreNotRoundedToTheInputsType) {
  for (int64_t T : {1, 2, 70}) {
    const Tensor one = Tensor::full({1, T, 1, 1}, 1, kBF16), v = Tensor::full({1, T, 1, 1}, 4096, kBF16);
    const ops::Recurrence got = ops::recur({.q_BTGK = one,
                                            .k_BTGK = one,
                                            .v_BTHV = v,
                                            .beta = Tensor::full({1, T, 1}, 1, kF32),
                                            .state = Tensor::full({1, 1, 1, 1}, 4098, kF32)});
    EXPECT_EQ(got.state.item(), 4096) << T;
  }
}

// S = (1 - b k^T k) Diag(a) S + b k^T v, where a scalar a may stand before the first factor as well.
TEST(RecurrenceEdges, TheDeltaRuleIsItsMatrixForm) {
  constexpr int64_t T = 40, K = 4, V = 3;
  for (Gate gate : {Gate::none, Gate::token, Gate::key}) {
    RecurrenceCase c({.B = 1, .T = T, .G = 1, .H = 1, .K = K, .V = V}, gate, true);
    c.use_state();
    const Numbers got = values(ops::recur(c.in, c.options).state), k = values(c.in.k_BTGK), v = values(c.in.v_BTHV),
                  beta = values(c.in.beta), g = numbers_or_none(c.in.log_decay);
    auto decay = [&](int64_t t, int64_t d) {
      return g.empty() ? 1 : std::exp(g[static_cast<size_t>(gate == Gate::key ? t * K + d : t)]);
    };
    for (bool is_before : {false, true}) {
      if (is_before && gate == Gate::key) continue;
      Numbers state = values(c.in.state);
      for (int64_t t = 0; t < T; ++t) {
        Numbers next(K * V, 0.0);
        const auto n = static_cast<size_t>(t);
        for (int64_t d = 0; d < K; ++d)
          for (int64_t m = 0; m < V; ++m) {
            double sum = 0;
            for (int64_t e = 0; e < K; ++e) {
              const double factor = (d == e ? 1 : 0) - beta[n] * k[n * K + d] * k[n * K + e];
              sum += is_before ? factor * state[e * V + m] : factor * decay(t, e) * state[e * V + m];
            }
            next[d * V + m] = (is_before ? decay(t, 0) * sum : sum) + beta[n] * k[n * K + d] * v[n * V + m];
          }
        state = next;
      }
      for (size_t i = 0; i < state.size(); ++i) EXPECT_NEAR(got[i], state[i], 1e-12) << to_string(gate);
    }
  }
}

// A decay of value channels is one of key channels with the state on its side: k and v change places.
TEST(RecurrenceEdges, ADecayOfValuesIsOneOfKeysTransposed) {
  constexpr int64_t T = 40, K = 4, V = 3;
  RecurrenceCase c({.B = 1, .T = T, .G = 1, .H = 1, .K = K, .V = V}, Gate::value, false);
  c.use_state();
  const Numbers got = values(ops::recur(c.in, c.options).state);
  const Tensor turned = ops::contiguous(c.in.state.transpose(2, 3));
  const ops::Recurrence other = ops::recur({.q_BTGK = c.in.v_BTHV,
                                            .k_BTGK = c.in.v_BTHV,
                                            .v_BTHV = c.in.k_BTGK,
                                            .log_decay = c.in.log_decay,
                                            .state = turned});
  const Numbers want = values(ops::contiguous(other.state.transpose(2, 3)));
  for (size_t i = 0; i < want.size(); ++i) EXPECT_NEAR(got[i], want[i], 1e-12);
}

}  // namespace
}  // namespace weft::test
