// What went wrong in recurrences elsewhere, and forms of the recurrence that must be the same, on the CPU and on GPUs: gates of exactly 0, lengths
// behind 2^16, memory behind the inputs and in padding, expanded gradients, residuals of nearly equal numbers, segments, the matrix form of the
// delta rule.
#include <gtest/gtest.h>

#include "tests/ops/recurrence_case.h"

namespace weft::test {
namespace {

constexpr double kClosed = -1e4;  // the floor of gates: a decay of exactly 0 in every dtype

// The loop multiplies the state by 0 there; decays of usual size stand before and behind, in the same chunk.
TEST_P(RecurrenceEdges, AGateOfZeroEqualsTheLoop) {
  for_each_kind([&](Gate gate, bool is_delta) {
    if (gate == Gate::none || gate == Gate::head) return;
    for (DType dtype : {kF64, kF32})
      for (int64_t every : {1, 2, 5, 40}) {
        RecurrenceCase c = make_case({.B = 1, .T = 97, .G = 1, .H = 1, .K = 4, .V = 3}, gate, is_delta, dtype, 0.3);
        const int64_t per_token = c.in.log_decay.num_elements() / 97;
        for (int64_t i = 0; i < c.in.log_decay.num_elements(); ++i) {
          if (i / per_token % every != 0 || (per_token > 1 && every > 2 && i % 3 == 0)) continue;
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

TEST_P(RecurrenceEdges, TheTailBehind65536TokensIsCounted) {
  constexpr int64_t T = 65537;
  for (DType dtype : {kF32, kBF16}) {
    const Tensor ones = full({1, T, 1, 1}, 1, dtype);
    const ops::Recurrence sums = ops::recur({.q_BTGK = ones, .k_BTGK = ones, .v_BTHV = ones});
    EXPECT_EQ(values(sums.state), Numbers{T});
    if (dtype == kF32) { EXPECT_EQ(values(sums.out).back(), T); }
    if (device().is_cuda() && has_emulated_cuda()) return;  // the rest would take a minute there
    // Half of what is missing to 1 is written each time: the state is 1 from the second token on to rounding, also at the end.
    const Tensor half = full({1, T, 1}, 0.5, kF32);
    const ops::Recurrence delta = ops::recur({.q_BTGK = ones, .k_BTGK = ones, .v_BTHV = ones, .beta = half});
    EXPECT_NEAR(values(delta.state)[0], 1, 1e-6);
    const ops::RecurrenceGrads grads = ops::recur_backward(ones, {}, {.q_BTGK = ones, .k_BTGK = ones, .v_BTHV = ones});
    const Numbers dv = values(grads.dv);  // of token t: how many read it
    EXPECT_EQ(dv.back(), 1);
    EXPECT_EQ(dv[T - 2], 2);
    if (dtype == kF32) { EXPECT_EQ(dv.front(), T); }
  }
}

// Everything that a call gives.
using Results = std::vector<Numbers>;
Results results_of(const RecurrenceCase& c) {
  const ops::Recurrence y = c.forward();
  const ops::RecurrenceGrads grads = c.backward();
  Results all;
  for (const Tensor* t :
       {&y.out, &y.state, &grads.dq, &grads.dk, &grads.dv, &grads.dlog_decay, &grads.dbeta, &grads.dstate})
    all.push_back(numbers_or_none(*t));
  return all;
}
void expect_same_bits(const Results& got, const Results& want, const std::string& what) {
  constexpr const char* names[] = {"out", "state", "dq", "dk", "dv", "dlog_decay", "dbeta", "dstate"};
  for (size_t i = 0; i < want.size(); ++i) EXPECT_EQ(got[i], want[i]) << what << " " << names[i];
}

// x, with as many tokens again behind it in memory, all NaN.
Tensor before_nan(const Tensor& x) {
  if (!x.defined() || x.num_dims() < 3) return x;
  Shape twice = x.shape();
  twice[1] *= 2;
  Tensor all = Tensor::full(twice, std::nan(""), x.dtype(), x.device()), place = all.slice(1, 0, x.size(1));
  ops::copy_(place, x);
  return place;
}

TEST_P(RecurrenceEdges, MemoryBehindTheInputsIsNotRead) {
  for_each_kind([&](Gate gate, bool is_delta) {
    for (DType dtype : {kF32, kF64}) {
      RecurrenceCase c = make_case({.B = 1, .T = 65, .G = 1, .H = 1, .K = 4, .V = 3}, gate, is_delta, dtype);
      c.use_state();
      const Results want = results_of(c);
      for (Tensor* t : {&c.in.q_BTGK, &c.in.k_BTGK, &c.in.v_BTHV, &c.in.log_decay, &c.in.beta, &c.dout})
        *t = before_nan(c.there(*t));
      expect_same_bits(results_of(c), want, c.name());
    }
  });
}

// x [B, T, ...] with NaN at tokens of padding.
Tensor with_nan_in_padding(const Tensor& x, const Tensor& documents) {
  if (!x.defined()) return x;
  Numbers numbers = values(x);
  const std::vector<int64_t> of_token = integers(documents);
  const size_t width = numbers.size() / of_token.size();
  for (size_t i = 0; i < numbers.size(); ++i)
    if (of_token[i / width] < 0) numbers[i] = std::nan("");
  return reference::make(x.shape(), numbers, x.dtype());
}

// At lengths of steps on the CPU, on GPUs, and of chunks.
TEST_P(RecurrenceEdges, InputsOfPaddingAreNotRead) {
  for_each_kind([&](Gate gate, bool is_delta) {
    for (int64_t T : {2, 7, 65}) {
      const DType dtype = T == 65 ? kBF16 : kF64;
      RecurrenceCase c = make_case({.B = 2, .T = T, .G = 1, .H = 1, .K = 4, .V = 3}, gate, is_delta, dtype);
      c.use_state(), c.use_documents();
      if (T == 7) c.use_writes();
      auto two_passes = [&] {
        if (is_delta) return Results();
        const ops::RecurrenceStates kept = ops::recur_states(c.there(), c.options);
        Tensor out;
        const Tensor state = ops::recur_into(out, c.there(), c.options, &kept);
        return Results{values(out), values(state)};
      };
      const std::vector<int64_t> documents = integers(c.in.documents);
      ASSERT_LT(*std::min_element(documents.begin(), documents.end()), 0) << "padding";
      const Results want = results_of(c), of_passes = two_passes();
      for (Tensor* t : {&c.in.q_BTGK, &c.in.k_BTGK, &c.in.v_BTHV, &c.in.beta, &c.dout})
        *t = with_nan_in_padding(*t, c.in.documents);
      expect_same_bits(results_of(c), want, c.name());
      expect_same_bits(two_passes(), of_passes, c.name() + " two passes");
    }
  });
}

// One document cut into segments, the state and its gradient handed on.
TEST_P(RecurrenceEdges, SegmentsWithTheStateHandedOnEqualTheWhole) {
  for_each_kind([&](Gate gate, bool is_delta) {
    const RecurrenceSize size{.B = 2, .T = 29, .G = 1, .H = 2, .K = 3, .V = 4};
    RecurrenceCase whole = make_case(size, gate, is_delta);
    if (gate == Gate::head) return;  // below, the same as per token
    whole.use_state(), whole.use_documents(), whole.use_writes();
    const ops::Recurrence want = whole.forward();
    const ops::RecurrenceGrads grads = whole.backward();
    const ops::RecurrenceInput in = whole.there();
    const int64_t cuts[] = {0, 1, 12, 12, 28, 29};
    std::vector<ops::RecurrenceInput> parts;
    Tensor state = in.state, document;
    for (int i = 0; i + 1 < 6; ++i) {
      auto part = [&](const Tensor& t) { return t.defined() ? t.slice(1, cuts[i], cuts[i + 1]) : t; };
      parts.push_back({part(in.q_BTGK), part(in.k_BTGK), part(in.v_BTHV), part(in.log_decay), part(in.beta),
                       part(in.writes), state, part(in.documents), document});
      ops::Recurrence got = ops::recur(parts.back(), whole.options);
      expect_close(got.out, values(part(want.out)), whole.name() + " out");
      document = ops::state_documents(parts.back().documents, document);
      state = got.state;
    }
    expect_close(state, values(want.state), whole.name() + " state");
    const Tensor dout = there(whole.dout);
    Tensor dstate = there(whole.dstate);
    for (int i = 4; i >= 0; --i) {
      auto part = [&](const Tensor& t) { return t.slice(1, cuts[i], cuts[i + 1]); };
      ops::RecurrenceGrads got = ops::recur_backward(part(dout), dstate, parts[static_cast<size_t>(i)], whole.options);
      expect_close(got.dq, values(part(grads.dq)), whole.name() + " dq");
      expect_close(got.dk, values(part(grads.dk)), whole.name() + " dk");
      expect_close(got.dv, values(part(grads.dv)), whole.name() + " dv");
      if (got.dlog_decay.defined()) expect_close(got.dlog_decay, values(part(grads.dlog_decay)), whole.name() + " dg");
      if (got.dbeta.defined()) expect_close(got.dbeta, values(part(grads.dbeta)), whole.name() + " dbeta");
      dstate = got.dstate;
    }
    expect_close(dstate, values(grads.dstate), whole.name() + " dstate");
  });
}

// The gradient of a sum is one number, repeated with stride 0.
TEST_P(RecurrenceEdges, ExpandedGradientsAreRead) {
  for_each_kind([&](Gate gate, bool is_delta) {
    RecurrenceCase c = make_case({.B = 2, .T = 33, .G = 1, .H = 2, .K = 4, .V = 3}, gate, is_delta);
    c.use_state();
    const Tensor one = full({1, 1, 1, 1}, 1, kF64);
    c.dout = one.expand(c.dout.shape()), c.dstate = one.expand(c.dstate.shape());
    c.expect_gradients();
  });
}

// The state answers 4098 where 4096 is to be written: the difference of -2 is lost if either is rounded to bf16 first.
TEST_P(RecurrenceEdges, ResidualsAreNotRoundedToTheInputsType) {
  for (int64_t T : {1, 2, 9, 70}) {
    const Tensor one = full({1, T, 1, 1}, 1, kBF16), v = full({1, T, 1, 1}, 4096, kBF16);
    const ops::Recurrence got = ops::recur({.q_BTGK = one,
                                            .k_BTGK = one,
                                            .v_BTHV = v,
                                            .beta = full({1, T, 1}, 1, kF32),
                                            .state = full({1, 1, 1, 1}, 4098, kF32)});
    EXPECT_EQ(values(got.state), Numbers{4096}) << T;
  }
}

// Sets the values of tokens from `first` on to what the state answers, to the rounding of bf16: their residuals are nothing but that rounding.
void write_answers(RecurrenceCase& c, int64_t first) {
  const auto [B, T, G, H, K, V] = c.size;
  const reference::Recurrence r = c.reference();
  const Numbers empty(static_cast<size_t>(K * V), 0.0);
  Numbers state = c.in.state.defined() ? values(c.in.state) : empty, v = r.v;
  for (int64_t t = 0; t < T; ++t) {
    const auto token = static_cast<size_t>(t);
    for (int64_t n = 0; n < V; ++n) {
      double answer = 0;
      for (int64_t d = 0; d < K; ++d) {
        state[d * V + n] *= r.decay(0, t, 0, d, n);
        answer += r.k[token * K + d] * state[d * V + n];
      }
      double& value = v[token * V + n];
      if (t >= first) value = static_cast<float>(BFloat16(static_cast<float>(answer)));
      for (int64_t d = 0; d < K; ++d) state[d * V + n] += r.k[token * K + d] * r.beta[token] * (value - answer);
    }
  }
  c.in.v_BTHV = reference::make(c.in.v_BTHV.shape(), v, kBF16);
}
// Largest difference of a and b from number `first` on.
double distance(const Numbers& a, const Numbers& b, size_t first = 0) {
  EXPECT_EQ(a.size(), b.size());
  double largest = 0;
  for (size_t i = first; i < b.size(); ++i) largest = std::max(largest, std::abs(a[i] - b[i]));
  return largest;
}

// What such residuals change in a state of large numbers.
TEST_P(RecurrenceEdges, SmallResidualsOfALargeStateAreWritten) {
  for (Gate gate : {Gate::none, Gate::head, Gate::token, Gate::key})
    for (int64_t T : {5, 64, 150}) {
      RecurrenceCase c = make_case({.B = 1, .T = T, .G = 1, .H = 1, .K = 40, .V = 5}, gate, true, kBF16, 0.01);
      c.in.state = mapped({1, 1, 40, 5}, "state", kF32, [](int64_t, double x) { return 1000 * x; });
      write_answers(c, 0);
      reference::Recurrence want = c.reference(), decayed = want;
      want.run();
      decayed.writes.assign(static_cast<size_t>(T), false);
      decayed.run();
      EXPECT_LE(distance(values(c.forward().state), want.last_state),
                0.02 * distance(decayed.last_state, want.last_state))
          << c.name();
    }
}

// The gradient of beta is a multiple of the residual. Here the chunk itself has written what the state answers.
TEST_P(RecurrenceEdges, SmallResidualsBehindLargeWritesOfAChunkAreKept) {
  constexpr int64_t kFirst = 8;
  for (Gate gate : {Gate::none, Gate::head, Gate::token, Gate::key})
    for (int64_t T : {20, 60}) {
      RecurrenceCase c = make_case({.B = 1, .T = T, .G = 1, .H = 1, .K = 3, .V = 5}, gate, true, kBF16, 0.01);
      write_answers(c, kFirst);
      RecurrenceCase wide = c;
      wide.device = Device::cpu();
      for (Tensor* t : {&wide.in.q_BTGK, &wide.in.k_BTGK, &wide.in.v_BTHV, &wide.in.log_decay, &wide.in.beta,
                        &wide.dout, &wide.dstate})
        if (t->defined()) *t = ops::cast(*t, kF64);
      const Numbers got = values(c.backward().dbeta), want = values(wide.backward().dbeta);
      EXPECT_LE(distance(got, want, kFirst), 0.02 * distance(Numbers(want.size(), 0.0), want, kFirst)) << c.name();
    }
}

// S = (1 - b k^T k) Diag(a) S + b k^T v, where a scalar a may stand before the first factor as well.
TEST_P(RecurrenceEdges, TheDeltaRuleIsItsMatrixForm) {
  constexpr int64_t T = 40, K = 4, V = 3;
  for (Gate gate : {Gate::none, Gate::token, Gate::key}) {
    RecurrenceCase c = make_case({.B = 1, .T = T, .G = 1, .H = 1, .K = K, .V = V}, gate, true);
    c.use_state();
    const Numbers got = values(c.forward().state), k = values(c.in.k_BTGK), v = values(c.in.v_BTHV),
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
TEST_P(RecurrenceEdges, ADecayOfValuesIsOneOfKeysTransposed) {
  constexpr int64_t T = 40, K = 4, V = 3;
  RecurrenceCase c = make_case({.B = 1, .T = T, .G = 1, .H = 1, .K = K, .V = V}, Gate::value, false);
  c.use_state();
  const Numbers got = values(c.forward().state);
  const ops::RecurrenceInput in = c.there();
  const ops::Recurrence other = ops::recur({.q_BTGK = in.v_BTHV,
                                            .k_BTGK = in.v_BTHV,
                                            .v_BTHV = in.k_BTGK,
                                            .log_decay = in.log_decay,
                                            .state = ops::contiguous(in.state.transpose(2, 3))});
  const Numbers want = values(ops::contiguous(other.state.transpose(2, 3)));
  for (size_t i = 0; i < want.size(); ++i) EXPECT_NEAR(got[i], want[i], 1e-12);
}

}  // namespace
}  // namespace weft::test
