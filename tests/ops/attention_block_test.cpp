// State in and out of the attention core: split key sets, summed backward calls, repeatability, threads, fuzzing.
#include "tests/ops/attention_case.h"

namespace weft {
namespace {

using namespace test;

ops::AttentionTokens part_of(const ops::AttentionTokens& t, int64_t begin, int64_t end) {
  ops::AttentionTokens out{t.positions.slice(1, begin, end), {}};
  if (t.documents.defined()) out.documents = t.documents.slice(1, begin, end);
  return out;
}

// The case's keys in pieces at `cuts`, merged through attend_block and summed through attend_block_backward.
void expect_pieces_equal_whole(const AttentionCase& c, const std::vector<int64_t>& cuts, double tolerance,
                               const std::string& what) {
  ops::Attention whole = c.forward();
  ops::AttentionGrads want = c.backward(whole);
  ops::AttentionState state = ops::attention_state(c.q, c.v.size(3), c.options);
  DType dtype = c.q.dtype() == kF64 ? kF64 : kF32;
  ops::AttentionGrads got{Tensor::zeros(c.q.shape(), dtype), Tensor::zeros(c.k.shape(), dtype),
                          Tensor::zeros(c.v.shape(), dtype)};
  for (size_t i = 0; i + 1 < cuts.size(); ++i)
    ops::attend_block(state, c.q, c.k.slice(1, cuts[i], cuts[i + 1]), c.v.slice(1, cuts[i], cuts[i + 1]), c.queries,
                      part_of(c.keys, cuts[i], cuts[i + 1]), c.options);
  expect_near(state.out, reference::numbers(whole.out), tolerance, what + " out");
  if (whole.lse.defined()) expect_near(state.lse, reference::numbers(whole.lse), tolerance, what + " lse");
  Tensor delta = ops::attention_delta(c.dout, whole.out, c.used_dlse(), c.options);
  for (size_t i = 0; i + 1 < cuts.size(); ++i) {
    Shape k_shape = c.k.shape(), v_shape = c.v.shape();
    k_shape[1] = v_shape[1] = cuts[i + 1] - cuts[i];
    ops::AttentionGrads piece{got.dq, Tensor::zeros(k_shape, dtype), Tensor::zeros(v_shape, dtype)};
    ops::attend_block_backward(piece, c.dout, c.q, c.k.slice(1, cuts[i], cuts[i + 1]),
                               c.v.slice(1, cuts[i], cuts[i + 1]), whole.lse, delta, c.queries,
                               part_of(c.keys, cuts[i], cuts[i + 1]), c.options);
    auto part = [&](const Tensor& t) { return reference::numbers(t.slice(1, cuts[i], cuts[i + 1])); };
    expect_near(piece.dk, part(want.dk), tolerance, what + " dk");
    expect_near(piece.dv, part(want.dv), tolerance, what + " dv");
  }
  expect_near(got.dq, reference::numbers(want.dq), tolerance, what + " dq");
}

TEST(AttentionBlock, PiecesOfTheKeysEqualOneCall) {
  for_each_isa([] {
    for (auto normaliser : {ops::Normaliser::softmax, ops::Normaliser::sum})
      for (DType dtype : {kF64, kF32})
        for (Order order : {Order::sorted, Order::shuffled}) {
          AttentionCase c({2, 120, 230, 4, 2, 8, 12}, dtype, Order::offset, order);
          c.options.normaliser = normaliser;
          c.options.mask.window = 90;
          c.options.dropout = 0.1;
          expect_pieces_equal_whole(c, {0, 1, 97, 97, 200, 230}, dtype == kF64 ? 1e-11 : 4e-6, "pieces");
        }
  });
}

TEST(AttentionBlock, AnyOrderOfThePiecesGivesTheSameRow) {
  AttentionCase c({1, 40, 80, 2, 1, 8, 8}, kF64);
  c.options.mask.is_causal = false;
  ops::Attention whole = c.forward();
  ops::AttentionState state = ops::attention_state(c.q, 8, c.options);
  for (int64_t begin : {60, 0, 20, 40})
    ops::attend_block(state, c.q, c.k.slice(1, begin, begin + 20), c.v.slice(1, begin, begin + 20), c.queries,
                      part_of(c.keys, begin, begin + 20), c.options);
  expect_near(state.out, reference::numbers(whole.out), 1e-12, "out");
  expect_near(state.lse, reference::numbers(whole.lse), 1e-12, "lse");
}

TEST(AttentionBlock, FuzzedProblemsEqualTheReference) {
  Rng rng = Rng(seed())["fuzz"];
  uint64_t n = 0;
  auto below = [&](int64_t bound) { return static_cast<int64_t>(rng.below(static_cast<uint64_t>(bound), n++)); };
  for (int round = 0; round < 36; ++round) {
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
    else if (below(4) == 0) c.options.normaliser = ops::Normaliser::sum;
    std::string what = str("round ", round, " ", dtype, " ", s);
    // bf16: out and gradients are rounded once, and gradients read the rounded out through delta.
    double tolerance = dtype == kF64 ? 1e-10 : dtype == kF32 ? 1e-5 : 0x1p-6;
    expect_equals_reference(c, tolerance, what);
    int64_t a = below(s.S + 1), b = below(s.S + 1);
    expect_pieces_equal_whole(c, {0, std::min(a, b), std::max(a, b), s.S}, tolerance, what);
  }
}

TEST(AttentionBlock, RepeatsBitForBitForAnyNumberOfThreads) {
  for_each_isa([] {
    for (int64_t heads : {1, 4}) {
      AttentionCase c({1, 700, 700, heads, heads == 4 ? 2 : 1, 16, 16}, kF32);
      int threads = num_threads();
      set_num_threads(1);
      ops::Attention want = c.forward();
      ops::AttentionGrads grads = c.backward(want);
      for (int n : {1, 2, 3, 5}) {
        set_num_threads(n);
        for (int repeat = 0; repeat < 3; ++repeat) {
          ops::Attention got = c.forward();
          expect_same_bits(got.out, want.out, "out");
          expect_same_bits(got.lse, want.lse, "lse");
          ops::AttentionGrads again = c.backward(got);
          expect_same_bits(again.dq, grads.dq, "dq");
          expect_same_bits(again.dk, grads.dk, "dk");
          expect_same_bits(again.dv, grads.dv, "dv");
        }
      }
      set_num_threads(threads);
    }
  });
}

TEST(AttentionBlock, MemoryBeyondTheResultsIsSmall) {
  AttentionCase c({1, 2048, 2048, 2, 2, 16, 16}, kF32);
  for (int warm = 0; warm < 3; ++warm) c.backward(c.forward());
  allocator(Device::cpu()).reset_peak();
  int64_t before = allocator(Device::cpu()).stats().current_bytes;
  int64_t system = allocator(Device::cpu()).stats().num_system_allocations;
  { ops::AttentionGrads grads = c.backward(c.forward()); }
  MemoryStats stats = allocator(Device::cpu()).stats();
  int64_t tensor = 2048 * 2 * 16 * 4;
  EXPECT_LT(stats.peak_bytes - before, 5 * tensor);
#if !defined(__SANITIZE_ADDRESS__)  // there every block comes from the system, so that its redzones are real
  EXPECT_EQ(stats.num_system_allocations, system);
#else
  (void)system;
#endif
}

// d(out, lse) by central differences, through the state that goes in and out.
TEST(AttentionBlock, GradientsEqualFiniteDifferences) {
  AttentionCase c({1, 7, 9, 2, 1, 3, 2}, kF64);
  c.options.score.softcap = 1.2;
  auto loss = [&] {
    ops::Attention y = c.forward();
    double sum = 0;
    for (int64_t i = 0; i < y.out.num_elements(); ++i) sum += y.out.data<double>()[i] * c.dout.data<double>()[i];
    for (int64_t i = 0; i < y.lse.num_elements(); ++i) sum += y.lse.data<double>()[i] * c.dlse.data<double>()[i];
    return sum;
  };
  ops::AttentionGrads grads = c.backward(c.forward());
  std::pair<Tensor*, Tensor*> pairs[] = {{&c.q, &grads.dq}, {&c.k, &grads.dk}, {&c.v, &grads.dv}};
  for (auto [x, dx] : pairs)
    for (int64_t i = 0; i < x->num_elements(); ++i) {
      double& at = x->mutable_data<double>()[i];
      double old = at;
      at = old + 1e-5;
      double high = loss();
      at = old - 1e-5;
      double low = loss();
      at = old;
      EXPECT_NEAR((high - low) / 2e-5, dx->data<double>()[i], 1e-8);
    }
}

}  // namespace
}  // namespace weft
