// Random attention problems for the attention tests, and comparison with the reference.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "ops/cpu/isa.h"
#include "tests/reference/attention.h"
#include "tests/support/random.h"
#include "weft/core/parallel.h"
#include "weft/ops/elementwise.h"

namespace weft::test {

enum class Order { sorted, offset, striped, shuffled };

struct AttentionSizes {
  int64_t B = 1, T = 1, S = 1, H = 1, G = 1, K = 8, V = 8;
};

inline std::string to_string(const AttentionSizes& s) {
  return str("B", s.B, " T", s.T, " S", s.S, " H", s.H, " G", s.G, " K", s.K, " V", s.V);
}

// n positions per row. sorted: 0 .. n-1; offset: a block further on; striped: every third; shuffled: any order.
inline Tensor make_positions(int64_t batch, int64_t n, Order order, uint64_t salt) {
  Tensor t = Tensor::empty({batch, n}, kI32);
  auto* p = t.mutable_data<int32_t>();
  Rng rng = Rng(seed())["positions"][salt];
  for (int64_t b = 0; b < batch; ++b) {
    auto* row = p + b * n;
    for (int64_t i = 0; i < n; ++i)
      row[i] = static_cast<int32_t>(order == Order::offset ? i + n / 2 : order == Order::striped ? 3 * i + 1 : i);
    if (order == Order::shuffled)
      for (int64_t i = n - 1; i > 0; --i)
        std::swap(row[i], row[rng.below(static_cast<uint64_t>(i + 1), static_cast<uint64_t>(b * n + i))]);
  }
  return t;
}

// Documents by position, so that both sides agree; about every eighth one is padding (-1).
inline Tensor make_documents(const Tensor& positions, int64_t length) {
  Tensor t = Tensor::empty(positions.shape(), kI32);
  for (int64_t i = 0; i < t.num_elements(); ++i) {
    int32_t document = positions.data<int32_t>()[i] / static_cast<int32_t>(length);
    t.mutable_data<int32_t>()[i] = document % 8 == 5 ? -1 : document;
  }
  return t;
}

// The same numbers in rows of H * K + gap, behind the gap: with an odd one, no token begins at a multiple of 4 bytes in bf16 but by
// chance. The gap is new memory, NaN in tests.
inline Tensor with_gaps(const Tensor& x_BTHK, int64_t gap) {
  const int64_t dim = x_BTHK.size(2) * x_BTHK.size(3);
  Tensor wide = Tensor::empty({x_BTHK.size(0), x_BTHK.size(1), gap + dim}, x_BTHK.dtype(), x_BTHK.device());
  Tensor view = wide.slice(2, gap, gap + dim).reshape(x_BTHK.shape());
  ops::copy_(view, x_BTHK);
  return view;
}

// One slope per head, one of them negative.
inline Tensor alibi_slopes(int64_t heads) {
  Tensor slopes = Tensor::empty({heads}, kF32, Device::cpu());
  for (int64_t h = 0; h < heads; ++h)
    slopes.mutable_data<float>()[h] = std::array{0x1p-5f, -0.01f, 0x1p-6f, 0x1p-7f}[static_cast<size_t>(h % 4)];
  return slopes;
}

struct AttentionCase {
  Tensor q, k, v, dout, dlse;
  ops::AttentionTokens queries, keys;
  ops::AttentionOptions options;
  int64_t gap = 0;  // of q, k, v and dout where on() puts them, see with_gaps()

  AttentionCase(const AttentionSizes& s, DType dtype, Order query_order = Order::sorted,
                Order key_order = Order::sorted)
      : q(random_normal({s.B, s.T, s.H, s.K}, "q", dtype)),
        k(random_normal({s.B, s.S, s.G, s.K}, "k", dtype)),
        v(random_normal({s.B, s.S, s.G, s.V}, "v", dtype)),
        dout(random_normal({s.B, s.T, s.H, s.V}, "dout", dtype)),
        queries{make_positions(s.B, s.T, query_order, 1), {}},
        keys{make_positions(s.B, s.S, key_order, 2), {}} {
    dlse = random_normal({s.B, s.T, s.H}, "dlse", dtype == kF64 ? kF64 : kF32);
  }

  void use_documents(int64_t length) {
    queries.documents = make_documents(queries.positions, length);
    keys.documents = make_documents(keys.positions, length);
    options.mask.same_document = true;
  }
  // Biases of both sides, the keys' ones for key/value heads or for each head.
  void use_biases(bool are_shared, DType dtype = kF64) {
    options.score.query_bias = random_normal({q.size(0), q.size(1), q.size(2)}, "query bias", dtype);
    options.score.key_bias = random_normal({k.size(0), k.size(1), (are_shared ? k : q).size(2)}, "key bias", dtype);
  }
  const Tensor& used_dlse() const {
    static const Tensor none;
    return options.normaliser == ops::Normaliser::sum ? none : dlse;
  }
  AttentionCase on(Device device) const {
    AttentionCase c = *this;
    for (Tensor* t :
         {&c.q, &c.k, &c.v, &c.dout, &c.dlse, &c.queries.positions, &c.queries.documents, &c.keys.positions,
          &c.keys.documents, &c.options.score.alibi_slopes, &c.options.score.query_bias, &c.options.score.key_bias})
      if (t->defined()) *t = ops::to(*t, device);
    if (gap > 0)
      for (Tensor* t : {&c.q, &c.k, &c.v, &c.dout}) *t = with_gaps(*t, gap);
    return c;
  }
  ops::Attention forward() const { return ops::attend(q, k, v, queries, keys, options); }
  ops::AttentionGrads backward(const ops::Attention& y) const {
    return ops::attend_backward(dout, used_dlse(), q, k, v, y, queries, keys, options);
  }
};

// |got - want| <= tolerance * (1 + largest |want|); infinities must agree. `want` is a reference's vector.
inline void expect_near(const Tensor& got_tensor, const reference::Numbers& want, double tolerance,
                        const std::string& what) {
  reference::Numbers got = reference::numbers(got_tensor);
  ASSERT_EQ(got.size(), want.size()) << what;
  double largest = 0, worst = 0;
  size_t where = 0;
  for (double x : want)
    if (std::isfinite(x)) largest = std::max(largest, std::abs(x));
  for (size_t i = 0; i < got.size(); ++i) {
    double error = got[i] == want[i] ? 0 : std::abs(got[i] - want[i]);
    if (!(error <= worst)) worst = error, where = i;
    if (std::isnan(error)) break;
  }
  EXPECT_LE(worst, tolerance * (1 + largest))
      << what << " element " << where << ": got " << got[where] << ", want " << want[where];
}

// Calls f for every instruction set of this CPU, then restores the chosen one.
template <class F>
void for_each_isa(F&& f) {
  cpu::Isa chosen = cpu::isa();
  for (cpu::Isa isa : {cpu::Isa::baseline, cpu::Isa::avx2, cpu::Isa::avx512})
    if (cpu::has_isa(isa)) {
      cpu::set_isa(isa);
      SCOPED_TRACE(str("isa ", isa));
      f();
    }
  cpu::set_isa(chosen);
}

// Forward, backward and column mass of a case against the reference: on every instruction set of this CPU, or on a GPU.
inline void expect_equals_reference(const AttentionCase& here, double tolerance, const std::string& what,
                                    Device device = Device::cpu()) {
  reference::AttentionReference want(here.q, here.k, here.v, here.queries, here.keys, here.options);
  want.backward(here.dout, here.used_dlse());
  AttentionCase c = here.on(device);
  bool has_lse = c.options.normaliser != ops::Normaliser::sum;
  auto check = [&] {
    ops::Attention y = c.forward();
    expect_near(y.out, want.out, tolerance, what + " out");
    if (has_lse) expect_near(y.lse, want.lse, tolerance, what + " lse");
    ops::AttentionGrads grads = c.backward(y);
    expect_near(grads.dq, want.dq, tolerance, what + " dq");
    expect_near(grads.dk, want.dk, tolerance, what + " dk");
    expect_near(grads.dv, want.dv, tolerance, what + " dv");
    expect_near(grads.dquery_bias, want.dquery_bias, tolerance, what + " dquery_bias");
    expect_near(grads.dkey_bias, want.dkey_bias, tolerance, what + " dkey_bias");
    Tensor sizes = y.lse;
    if (!has_lse && c.options.score.activation == ops::ScoreActivation::none) {  // signed weights
      sizes = Tensor::from(std::span<const double>(want.log_sizes), {c.q.size(0), c.q.size(1), c.q.size(2)});
      sizes = ops::to(ops::cast(sizes, c.q.dtype() == kF64 ? kF64 : kF32), device);
    } else if (!has_lse) {  // by the core itself: a row of few small weights has no more digits than they have
      Tensor one = Tensor::full({c.v.size(0), c.v.size(1), c.v.size(2), 1}, 1, c.v.dtype(), device);
      ops::AttentionOptions options = c.options;
      options.dropout = 0, options.backend = ops::AttentionBackend::automatic;  // not all take rows of one number
      Tensor sums = ops::attend(c.q, c.k, one, c.queries, c.keys, options).out;
      sizes =
          ops::log(ops::cast(sums, c.q.dtype() == kF64 ? kF64 : kF32)).reshape({c.q.size(0), c.q.size(1), c.q.size(2)});
    }
    ops::AttentionStatistics seen = ops::attention_statistics(c.q, c.k, sizes, c.queries, c.keys, c.options);
    double coarse = std::max(tolerance, 2e-6);  // f32
    expect_near(seen.column_mass, want.mass, coarse, what + " mass");
    expect_near(seen.entropy, want.entropy, coarse, what + " entropy");
    expect_near(seen.max_score, want.top, coarse, what + " largest score");
  };
  if (device.is_cpu()) for_each_isa(check);
  else check();
}

inline ops::AttentionTokens part_of(const ops::AttentionTokens& t, int64_t begin, int64_t end) {
  ops::AttentionTokens out{t.positions.slice(1, begin, end), {}};
  if (t.documents.defined()) out.documents = t.documents.slice(1, begin, end);
  return out;
}

// The case's keys in pieces at `cuts`, merged through attend_block and summed through attend_block_backward.
inline void expect_pieces_equal_whole(const AttentionCase& c, const std::vector<int64_t>& cuts, double tolerance,
                                      const std::string& what) {
  ops::Attention whole = c.forward();
  ops::AttentionGrads want = c.backward(whole);
  ops::AttentionState state = ops::attention_state(c.q, c.v.size(3), c.options);
  DType dtype = c.q.dtype() == kF64 ? kF64 : kF32;
  ops::AttentionGrads got{Tensor::zeros(c.q.shape(), dtype, c.q.device()),
                          Tensor::zeros(c.k.shape(), dtype, c.q.device()),
                          Tensor::zeros(c.v.shape(), dtype, c.q.device())};
  const Tensor &query_bias = c.options.score.query_bias, &key_bias = c.options.score.key_bias;
  auto options_of = [&](size_t i) {
    ops::AttentionOptions options = c.options;
    if (key_bias.defined()) options.score.key_bias = key_bias.slice(1, cuts[i], cuts[i + 1]);
    return options;
  };
  for (size_t i = 0; i + 1 < cuts.size(); ++i)
    ops::attend_block(state, c.q, c.k.slice(1, cuts[i], cuts[i + 1]), c.v.slice(1, cuts[i], cuts[i + 1]), c.queries,
                      part_of(c.keys, cuts[i], cuts[i + 1]), options_of(i));
  expect_near(state.out, reference::numbers(whole.out), tolerance, what + " out");
  if (whole.lse.defined()) expect_near(state.lse, reference::numbers(whole.lse), tolerance, what + " lse");
  Tensor delta = ops::attention_delta(c.dout, whole.out, c.used_dlse(), c.options);
  if (query_bias.defined()) got.dquery_bias = Tensor::zeros(query_bias.shape(), kF64, c.q.device());
  for (size_t i = 0; i + 1 < cuts.size(); ++i) {
    Shape k_shape = c.k.shape(), v_shape = c.v.shape();
    k_shape[1] = v_shape[1] = cuts[i + 1] - cuts[i];
    ops::AttentionGrads piece{got.dq,
                              Tensor::zeros(k_shape, dtype, c.q.device()),
                              Tensor::zeros(v_shape, dtype, c.q.device()),
                              got.dquery_bias,
                              {}};
    const ops::AttentionOptions options = options_of(i);
    if (key_bias.defined()) piece.dkey_bias = Tensor::zeros(options.score.key_bias.shape(), kF64, c.q.device());
    ops::attend_block_backward(piece, c.dout, c.q, c.k.slice(1, cuts[i], cuts[i + 1]),
                               c.v.slice(1, cuts[i], cuts[i + 1]), whole.lse, delta, c.queries,
                               part_of(c.keys, cuts[i], cuts[i + 1]), options);
    auto part = [&](const Tensor& t) { return reference::numbers(t.slice(1, cuts[i], cuts[i + 1])); };
    expect_near(piece.dk, part(want.dk), tolerance, what + " dk");
    expect_near(piece.dv, part(want.dv), tolerance, what + " dv");
    if (key_bias.defined()) expect_near(piece.dkey_bias, part(want.dkey_bias), tolerance, what + " dkey_bias");
  }
  expect_near(got.dq, reference::numbers(want.dq), tolerance, what + " dq");
  expect_near(got.dquery_bias, reference::numbers(want.dquery_bias), tolerance, what + " dquery_bias");
}

// A problem of odd sizes, orders, masks and modifiers, and places to cut its keys at.
struct FuzzedAttention {
  AttentionCase c;
  double tolerance;
  std::string what;
  std::vector<int64_t> cuts;
};

template <class F>
void fuzz_attention(int rounds, F&& f) {
  const Rng rng = Rng(seed())["fuzz"], rng_of_alibi = Rng(seed())["fuzz alibi"], rng_of_bias = Rng(seed())["fuzz bias"];
  uint64_t n = 0;
  auto below = [&](int64_t bound) { return static_cast<int64_t>(rng.below(static_cast<uint64_t>(bound), n++)); };
  for (int round = 0; round < rounds; ++round) {
    AttentionSizes s;
    s.B = 1 + below(3), s.G = 1 + below(3), s.H = s.G * (1 + below(3));
    s.T = 1 + below(140), s.S = 1 + below(220), s.K = 1 + below(40), s.V = 1 + below(40);
    DType dtype = std::array{kF64, kF32, kBF16}[static_cast<size_t>(below(3))];
    AttentionCase c(s, dtype, static_cast<Order>(below(4)), static_cast<Order>(below(4)));
    c.options.mask.is_causal = below(3) > 0;
    if (below(2)) c.options.mask.window = 1 + below(100);
    if (below(3) == 0) c.options.mask.prefix = 1 + below(50);
    if (below(3) == 0) c.use_documents(1 + below(60));
    if (below(4) == 0) c.options.dropout = 0.25;
    if (below(4) == 0) c.options.score.softcap = 2;
    if (rng_of_alibi.below(4, static_cast<uint64_t>(round)) == 0) c.options.score.alibi_slopes = alibi_slopes(s.H);
    auto kind = below(6);
    if (kind == 0) c.options.normaliser = ops::Normaliser::signed_softmax;
    if (kind == 1 || kind == 2) {
      c.options.normaliser = ops::Normaliser::sum;
      c.options.score.activation = static_cast<ops::ScoreActivation>(below(4));
      if (below(2)) c.options.score.shift = -1.25;
    }
    const uint64_t bias_kind = rng_of_bias.below(6, static_cast<uint64_t>(round));
    if (bias_kind < 2) c.use_biases(bias_kind == 0);
    std::string what = str("round ", round, " ", dtype, " ", s);
    // bf16: out and gradients are rounded once, and gradients read the rounded out through delta.
    double tolerance = dtype == kF64 ? 1e-10 : dtype == kF32 ? 1e-5 : 0x1p-6;
    int64_t a = below(s.S + 1), b = below(s.S + 1);
    f(FuzzedAttention{c, tolerance, what, {0, std::min(a, b), std::max(a, b), s.S}});
  }
}

inline void expect_same_bits(const Tensor& a, const Tensor& b, const std::string& what) {
  ASSERT_EQ(a.defined(), b.defined()) << what;
  if (!a.defined()) return;
  ASSERT_EQ(a.num_bytes(), b.num_bytes()) << what;
  EXPECT_EQ(0, std::memcmp(a.raw(), b.raw(), a.num_bytes())) << what;
}

// Forward and backward of a case, which give the same bits when they run again.
inline std::pair<ops::Attention, ops::AttentionGrads> expect_repeats(const AttentionCase& c) {
  ops::Attention y = c.forward(), again = c.forward();
  ops::AttentionGrads grads = c.backward(y), more = c.backward(y);
  expect_same_bits(y.out.cpu(), again.out.cpu(), "out");
  expect_same_bits(y.lse.cpu(), again.lse.cpu(), "lse");
  expect_same_bits(grads.dq.cpu(), more.dq.cpu(), "dq");
  expect_same_bits(grads.dk.cpu(), more.dk.cpu(), "dk");
  expect_same_bits(grads.dv.cpu(), more.dv.cpu(), "dv");
  if (grads.dquery_bias.defined()) expect_same_bits(grads.dquery_bias.cpu(), more.dquery_bias.cpu(), "dquery_bias");
  if (grads.dkey_bias.defined()) expect_same_bits(grads.dkey_bias.cpu(), more.dkey_bias.cpu(), "dkey_bias");
  return {y, grads};
}

}  // namespace weft::test
