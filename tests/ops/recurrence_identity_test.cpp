// What the recurrence is when its inputs are special: identities that other mixers are built on.
#include "tests/ops/recurrence_case.h"

namespace weft::test {
namespace {

// Numerator and denominator of linear attention in one call: a column of ones beside the values.
TEST(RecurrenceIdentity, AColumnOfOnesGivesTheDenominator) {
  constexpr int64_t T = 33, K = 4, V = 3;
  Tensor q = mapped({1, T, 1, K}, "q", kF64, [](int64_t, double x) { return std::exp(x); });
  Tensor k = mapped({1, T, 1, K}, "k", kF64, [](int64_t, double x) { return std::exp(x); });
  Tensor v = mapped({1, T, 1, V + 1}, "v", kF64, [](int64_t i, double x) { return i % (V + 1) == V ? 1 : x; });
  const Numbers qs = values(q), ks = values(k), vs = values(v);
  const Numbers out = values(ops::recur({.q_BTGK = q, .k_BTGK = k, .v_BTHV = v}).out);
  for (int64_t t = 0; t < T; ++t)
    for (int64_t n = 0; n < V; ++n) {
      double sum = 0, total = 0;
      for (int64_t j = 0; j <= t; ++j) {
        double weight = 0;
        for (int64_t c = 0; c < K; ++c) weight += qs[t * K + c] * ks[j * K + c];
        sum += weight * vs[j * (V + 1) + n], total += weight;
      }
      EXPECT_NEAR(out[t * (V + 1) + n] / out[t * (V + 1) + V], sum / total, 1e-12);
    }
}

// RWKV-6 reads before it writes, with a bonus for the token itself: o_t = r_t (S_{t-1} + Diag(u) k_t^T v_t). Queries one token to the left,
// outputs one to the right.
TEST(RecurrenceIdentity, Rwkv6IsAShiftAndABonus) {
  constexpr int64_t T = 40, K = 4, V = 3;
  RecurrenceCase c({.T = T, .K = K, .V = V}, Gate::key, false);
  c.use_state();
  c.options.scale = 1;
  const Numbers r = values(c.in.q_BTGK), k = values(c.in.k_BTGK), v = values(c.in.v_BTHV), g = values(c.in.log_decay);
  const Numbers bonus = values(random_normal({K}, "bonus"));
  Numbers S = values(c.in.state), shifted = r;
  const Numbers first = S;
  for (int64_t i = 0; i < T * K; ++i) shifted[i] = i + K < T * K ? r[i + K] : 0;
  c.in.q_BTGK = reference::make({1, T, 1, K}, shifted, kF64);
  const Numbers out = values(ops::recur(c.in, c.options).out);
  for (int64_t t = 0; t < T; ++t)
    for (int64_t n = 0; n < V; ++n) {
      double want = 0, own = 0, before = 0;
      for (int64_t d = 0; d < K; ++d) {
        double &s = S[d * V + n], kv = k[t * K + d] * v[t * V + n];
        want += r[t * K + d] * (s + bonus[d] * kv);
        own += r[t * K + d] * bonus[d] * kv;
        before += r[t * K + d] * first[d * V + n];
        s = std::exp(g[t * K + d]) * s + kv;
      }
      EXPECT_NEAR((t == 0 ? before : out[(t - 1) * V + n]) + own, want, 1e-12);
    }
}

// LightNet: k_t = exp(x_t - z_t) and g_t = z_{t-1} - z_t with the running log-sum-exp z make a softmax over positions of every key channel.
TEST(RecurrenceIdentity, LightNetIsACausalSoftmaxOverPositions) {
  constexpr int64_t T = 37, K = 3, V = 2;
  RecurrenceCase c({.T = T, .K = K, .V = V}, Gate::key, false);
  const Numbers x = values(random_normal({T * K}, "x")), q = values(c.in.q_BTGK), v = values(c.in.v_BTHV);
  Numbers k(x.size()), g(x.size()), z(K, 0);
  for (int64_t t = 0; t < T; ++t)
    for (int64_t d = 0; d < K; ++d) {
      const double before = z[d], here = 3 * x[t * K + d];
      z[d] = t == 0 ? here : std::max(before, here) + std::log1p(std::exp(-std::abs(before - here)));
      k[t * K + d] = std::exp(here - z[d]), g[t * K + d] = t == 0 ? 0 : before - z[d];
    }
  c.in.k_BTGK = reference::make({1, T, 1, K}, k, kF64);
  c.in.log_decay = reference::make({1, T, 1, K}, g, kF64);
  c.options.scale = 1;
  const Numbers out = values(ops::recur(c.in, c.options).out);
  for (int64_t t = 0; t < T; ++t)
    for (int64_t n = 0; n < V; ++n) {
      double want = 0;
      for (int64_t d = 0; d < K; ++d) {
        double sum = 0, total = 0;
        for (int64_t j = 0; j <= t; ++j) {
          const double weight = std::exp(3 * x[j * K + d]);
          sum += weight * v[j * V + n], total += weight;
        }
        want += q[t * K + d] * sum / total;
      }
      EXPECT_NEAR(out[t * V + n], want, 1e-12);
    }
}

// From the state [0 | I] with values [V | 0] the last state is [L | M]: what the tokens write, and what they make of the state before them.
TEST(RecurrenceIdentity, WidenedValuesGiveTheTransitionOfASegment) {
  for (Gate gate : {Gate::none, Gate::token, Gate::key}) {
    constexpr int64_t T = 35, H = 2, K = 4, V = 3;
    RecurrenceCase c({.T = T, .G = 1, .H = H, .K = K, .V = V}, gate, true);
    c.use_state();
    const Numbers want = values(ops::recur(c.in, c.options).state), start = values(c.in.state);
    const Numbers v = values(c.in.v_BTHV);
    Numbers wide_v(T * H * (V + K)), wide_state(H * K * (V + K));
    for (int64_t i = 0; i < T * H; ++i)
      for (int64_t n = 0; n < V; ++n) wide_v[i * (V + K) + n] = v[i * V + n];
    for (int64_t h = 0; h < H; ++h)
      for (int64_t d = 0; d < K; ++d) wide_state[(h * K + d) * (V + K) + V + d] = 1;
    c.in.v_BTHV = reference::make({1, T, H, V + K}, wide_v, kF64);
    c.in.state = reference::make({1, H, K, V + K}, wide_state, kF64);
    const Numbers both = values(ops::recur(c.in, c.options).state);
    for (int64_t h = 0; h < H; ++h)
      for (int64_t d = 0; d < K; ++d)
        for (int64_t n = 0; n < V; ++n) {
          const double* row = both.data() + (h * K + d) * (V + K);
          double got = row[n];
          for (int64_t e = 0; e < K; ++e) got += row[V + e] * start[(h * K + e) * V + n];
          EXPECT_NEAR(got, want[(h * K + d) * V + n], 1e-12) << to_string(gate);
        }
  }
}

// A decay that is equal for all tokens or channels may be given in any of the shapes.
TEST(RecurrenceIdentity, EqualDecaysInEveryShape) {
  for (bool is_delta : {false, true}) {
    RecurrenceCase c({.B = 2, .T = 45, .G = 1, .H = 3, .K = 4, .V = 5}, Gate::head, is_delta);
    const Numbers want = values(ops::recur(c.in, c.options).out);
    const Tensor g = c.in.log_decay;
    auto check = [&](const Shape& shape, ops::DecaySide side) {
      c.in.log_decay = (shape.num_dims() == 4 ? g.unsqueeze(1) : g).expand(shape);
      c.options.side = side;
      expect_close(ops::recur(c.in, c.options).out, want, str(shape), 1e-12);
    };
    check({2, 45, 3}, ops::DecaySide::key);
    check({2, 45, 3, 4}, ops::DecaySide::key);
    if (!is_delta) check({2, 45, 3, 5}, ops::DecaySide::value);
  }
}

struct WrongInput {
  void (*change)(RecurrenceCase&);
  std::vector<const char*> texts;
};

TEST(RecurrenceErrors, SayWhatIsWrongWithTheValues) {
  const WrongInput rows[] = {
      {[](RecurrenceCase& c) { c.in.q_BTGK = Tensor(); }, {"recur: q is undefined", "[batch, tokens, heads, width]"}},
      {[](RecurrenceCase& c) {
         c.in.v_BTHV = Tensor::zeros({1, 6, 4, 3}, kI32);
       },
       {"v is [1, 6, 4, 3] i32", "cast it"}},
      {[](RecurrenceCase& c) {
         c.in.k_BTGK = Tensor::zeros({1, 6, 2, 4});
       },
       {"k is [1, 6, 2, 4]", "q and k are both"}},
      {[](RecurrenceCase& c) { c.in.k_BTGK = ops::cast(c.in.k_BTGK, kBF16); }, {"bf16", "one dtype"}},
      {[](RecurrenceCase& c) {
         c.in.v_BTHV = Tensor::zeros({1, 7, 4, 3});
       },
       {"tokens differ", "[1, 7, 4, 3]"}},
      {[](RecurrenceCase& c) {
         c.in.v_BTHV = Tensor::zeros({1, 6, 3, 3});
       },
       {"3 value heads are not a multiple of 2 key heads"}},
      {[](RecurrenceCase& c) {
         c.in.v_BTHV = Tensor::zeros({1, 6, 0, 3});
       },
       {"0 value heads", "one or more value heads for each key head"}},
      {[](RecurrenceCase& c) {
         c.in.v_BTHV = Tensor::zeros({1, 6, 4, 0});
       },
       {"its width is 0"}},
      {[](RecurrenceCase& c) {
         c.in.state = Tensor::zeros({1, 4, 3, 5});
       },
       {"state is [1, 4, 3, 5] f32", "must be [1, 4, 5, 3] f32"}},
      {[](RecurrenceCase& c) {
         c.in.state = Tensor::zeros({1, 4, 5, 3}, kBF16);
       },
       {"state is [1, 4, 5, 3] bf16"}},
      {[](RecurrenceCase& c) { c.in.log_decay = Tensor::full({4}, 0.25); },
       {"has an element 0.25, above 0", "log_sigmoid"}},
      {[](RecurrenceCase& c) {
         c.in.log_decay = Tensor::full({1, 6, 4, 5}, -INFINITY);
       },
       {"not finite", "floor the gate"}},
      {[](RecurrenceCase& c) {
         c.in.log_decay = Tensor::full({1, 6, 4}, NAN);
       },
       {"not finite"}},
      {[](RecurrenceCase& c) {
         c.in.log_decay = Tensor::zeros({1, 6, 4, 3});
       },
       {"log_decay is [1, 6, 4, 3]", "must be [1, 6, 4, 5]"}},
      {[](RecurrenceCase& c) { c.in.log_decay = Tensor::zeros({4}, kF64); }, {"log_decay is [4] f64"}},
      {[](RecurrenceCase& c) {
         c.in.beta = Tensor::zeros({1, 6, 2});
       },
       {"beta is [1, 6, 2]", "must be [1, 6, 4]"}},
      {[](RecurrenceCase& c) {
         c.in.writes = Tensor::zeros({1, 6, 4});
       },
       {"writes is [1, 6, 4] f32", "bool"}},
      {[](RecurrenceCase& c) { c.options.side = ops::DecaySide::value; }, {"side value, log_decay is undefined"}},
      {[](RecurrenceCase& c) {
         c.options.side = ops::DecaySide::value;
         c.in.log_decay = Tensor::zeros({1, 6, 4, 3}), c.in.beta = Tensor::zeros({1, 6, 4});
       },
       {"decay of value channels with beta"}},
      {[](RecurrenceCase& c) { c.options.chunk = 0; }, {"chunk is 0 tokens, must be 1 to 1024"}},
      {[](RecurrenceCase& c) { c.options.chunk = -4; }, {"chunk is -4"}},
      {[](RecurrenceCase& c) { c.options.scale = NAN; }, {"scale is nan"}},
      {[](RecurrenceCase& c) {
         c.in.documents = Tensor::zeros({1, 5}, kI32);
       },
       {"documents is [1, 5] i32"}},
      {[](RecurrenceCase& c) { c.in.state_document = Tensor::zeros({1}, kI32); },
       {"state_document is [1] i32", "documents are undefined"}},
  };
  for (const WrongInput& row : rows) {
    RecurrenceCase c({.B = 1, .T = 6, .G = 2, .H = 4, .K = 5, .V = 3}, Gate::none, false, kF32);
    row.change(c);
    for (bool is_backward : {false, true}) try {
        if (is_backward) ops::recur_backward(c.dout, {}, c.in, c.options);
        else ops::recur(c.in, c.options);
        ADD_FAILURE() << "no error with " << row.texts[0];
      } catch (const Error& e) {
        for (const char* text : row.texts) {
          const std::string part = is_backward && std::string_view(text).starts_with("recur:")
                                       ? std::string("recur_backward") + (text + 5)
                                       : std::string(text);
          EXPECT_NE(std::string(e.what()).find(part), std::string::npos) << e.what() << "\nlacks " << part;
        }
      }
  }
}

TEST(RecurrenceErrors, GradientsMustFit) {
  RecurrenceCase c({.B = 1, .T = 6, .G = 2, .H = 4, .K = 5, .V = 3}, Gate::none, false, kF32);
  expect_errors({
      {[&] {
         ops::recur_backward(Tensor::zeros({1, 6, 4, 2}), {}, c.in);
       },
       {"dout is [1, 6, 4, 2]", "[1, 6, 4, 3]"}},
      {[&] {
         ops::recur_backward(c.dout, Tensor::zeros({1, 4, 3, 5}), c.in);
       },
       {"dstate is [1, 4, 3, 5]"}},
      {[&] { ops::state_documents(Tensor::zeros({6}, kI32)); }, {"documents are [6] i32", "[B, T]"}},
  });
}

TEST(Recurrence, DocumentOfTheStateIsTheLastThatIsNoPadding) {
  Tensor documents = Tensor::from<int32_t>({3, 3, -1, 0, 1, -1, -1, -1, -1}, {3, 3});
  EXPECT_EQ(ops::state_documents(documents).to_vector<int32_t>(), (std::vector<int32_t>{3, 1, -1}));
  EXPECT_EQ(ops::state_documents(documents, Tensor::from<int32_t>({7, 8, 9}, {3})).to_vector<int32_t>(),
            (std::vector<int32_t>{3, 1, 9}));
}

}  // namespace
}  // namespace weft::test
