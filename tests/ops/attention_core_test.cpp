// The attention core with functors of the user's own: masks, scores, normalisers; and its parts.
#include "weft/ops/attention_core.h"

#include <atomic>
#include <thread>

#include "tests/ops/attention_case.h"

namespace weft {
namespace {

using namespace test;

// Every second key, written for lanes.
struct Dilated {
  template <class I>
  auto keep(int64_t, int64_t, ops::Token<I> q, ops::Token<I> k) const {
    return (k.position <= q.position) & (((q.position - k.position) & 1) == 0);
  }
  ops::Cover cover(int64_t, int64_t, ops::TokenRange q, ops::TokenRange k) const {
    return k.position_min > q.position_max ? ops::Cover::empty : ops::Cover::partial;
  }
};

// The same for one pair at a time.
struct PlainDilated {
  bool keep(int64_t, int64_t, ops::Token<int32_t> q, ops::Token<int32_t> k) const {
    return k.position <= q.position && (q.position - k.position) % 2 == 0;
  }
  ops::Cover cover(int64_t, int64_t, ops::TokenRange, ops::TokenRange) const { return ops::Cover::partial; }
};

// s + a * s^2 for head 1, s otherwise: one number at a time.
struct Quadratic {
  double a;
  template <class V>
  requires std::is_floating_point_v<V> V value(V s, int64_t, int64_t head, ops::Token<int32_t>, ops::Token<int32_t>)
  const { return head == 1 ? s + V(a) * s * s : s; }
  template <class V>
  requires std::is_floating_point_v<V> V slope(V s, int64_t, int64_t head, ops::Token<int32_t>, ops::Token<int32_t>)
  const { return head == 1 ? 1 + V(2 * a) * s : 1; }
};

TEST(AttentionCore, TakesMasksAndScoresOfTheUsersOwn) {
  AttentionCase c({1, 101, 101, 2, 1, 8, 8}, kF64);
  Quadratic score{0.1};
  ops::Attention lanes =
      ops::attend_with(Dilated{}, score, ops::SoftmaxNormaliser{}, c.q, c.k, c.v, c.queries, c.keys, c.options);
  ops::Attention plain =
      ops::attend_with(PlainDilated{}, score, ops::SoftmaxNormaliser{}, c.q, c.k, c.v, c.queries, c.keys, c.options);
  expect_near(lanes.out, reference::numbers(plain.out), 1e-13, "lanes and pairs");
  for (int64_t i : {0, 1, 50, 100})
    for (int64_t h : {0, 1}) {
      double sum = 0, first = 0;
      for (int64_t j = i % 2; j <= i; j += 2) {
        double s = 0;
        for (int64_t e = 0; e < 8; ++e) s += c.q.data<double>()[(i * 2 + h) * 8 + e] * c.k.data<double>()[j * 8 + e];
        s /= std::sqrt(8.0);
        double w = std::exp(h == 1 ? s + 0.1 * s * s : s);
        sum += w, first += w * c.v.data<double>()[j * 8];
      }
      EXPECT_NEAR(lanes.lse.data<double>()[i * 2 + h], std::log(sum), 1e-12);
      EXPECT_NEAR(lanes.out.data<double>()[(i * 2 + h) * 8], first / sum, 1e-12);
    }
}

TEST(AttentionCore, ComposedMasksEqualTheStandardOne) {
  using namespace ops;
  auto expect_same = [](const auto& mask, const AttentionMask& standard, const std::string& what) {
    for (Order order : {static_cast<Order>(0), static_cast<Order>(1), static_cast<Order>(2)}) {
      AttentionCase c({2, 150, 170, 2, 1, 8, 8}, kF32, order, order);
      c.use_documents(40);
      c.options.mask = standard;
      ops::Attention want = c.forward();
      ops::Attention got =
          attend_with(mask, PlainScore{}, SoftmaxNormaliser{}, c.q, c.k, c.v, c.queries, c.keys, c.options);
      expect_near(got.out, reference::numbers(want.out), 1e-6, what);
      expect_near(got.lse, reference::numbers(want.lse), 1e-6, what);
    }
  };
  expect_same(Causal{}, {}, "causal");
  expect_same(And{Causal{}, Window{30}}, {.window = 30}, "window");
  expect_same(Or{Causal{}, Prefix{20}}, {.prefix = 20}, "prefix");
  expect_same(And{Document{}, Or{And{Causal{}, Window{9}}, Prefix{4}}},
              {.window = 9, .prefix = 4, .same_document = true}, "all");
  expect_same(Not{Not{And{Document{}, Causal{}}}}, {.same_document = true}, "twice not");
  expect_same(Not{Or{Not{Causal{}}, Not{Window{30}}}}, {.window = 30}, "De Morgan");
}

// A tile is never called empty or full wrongly: what cover says holds for each of its pairs.
TEST(AttentionCore, CoversOfComposedMasksAreNeverWrong) {
  using namespace ops;
  auto expect_sound = [](const auto& mask, const char* what) {
    Rng rng = Rng(seed())["cover"];
    int certain = 0;
    for (uint64_t round = 0; round < 3000; ++round) {
      auto below = [&](uint64_t bound, uint64_t n) { return static_cast<int32_t>(rng.below(bound, round * 16 + n)); };
      int32_t q0 = below(40, 0), k0 = below(40, 1), dq = below(3, 2) - 1, dk = below(3, 3) - 1;
      TokenRange q{q0, q0 + below(6, 4), dq, dq + below(2, 5)}, k{k0, k0 + below(6, 6), dk, dk + below(2, 7)};
      Cover cover = mask.cover(0, 0, q, k);
      if (cover == Cover::partial) continue;
      ++certain;
      for (int32_t i = q.position_min; i <= q.position_max; ++i)
        for (int32_t j = k.position_min; j <= k.position_max; ++j)
          for (int32_t a = q.document_min; a <= q.document_max; ++a)
            for (int32_t b = k.document_min; b <= k.document_max; ++b)
              ASSERT_EQ(bool(mask.keep(0, 0, Token<int32_t>{i, a}, Token<int32_t>{j, b})), cover == Cover::full)
                  << what;
    }
    EXPECT_GT(certain, 300) << what;
  };
  expect_sound(Causal{}, "causal");
  expect_sound(Window{7}, "window");
  expect_sound(Prefix{20}, "prefix");
  expect_sound(Document{}, "document");
  expect_sound(And{Causal{}, Document{}}, "and");
  expect_sound(Or{Causal{}, Prefix{20}}, "or");
  expect_sound(Not{And{Causal{}, Window{7}}}, "not");
}

// A window that counts how often it is asked what a range of tokens sees.
struct CountedWindow {
  ops::And<ops::Causal, ops::Window> mask;
  std::atomic<int64_t>* asked;
  template <class I>
  auto keep(int64_t row, int64_t head, ops::Token<I> q, ops::Token<I> k) const {
    return mask.keep(row, head, q, k);
  }
  ops::Cover cover(int64_t row, int64_t head, ops::TokenRange q, ops::TokenRange k) const {
    asked->fetch_add(1, std::memory_order_relaxed);
    return mask.cover(row, head, q, k);
  }
};

// In a long row a window of few blocks passes over the others by runs of blocks: the cost of a token does not grow with the row.
TEST(AttentionCore, BlocksOutsideAWindowAreNotVisited) {
  auto asked_per_block = [](int64_t blocks) {
    AttentionCase c({1, blocks * ops::core::kBlock, blocks * ops::core::kBlock, 1, 1, 4, 4}, kF32);
    std::atomic<int64_t> forward = 0, backward = 0;
    auto mask = [](std::atomic<int64_t>& asked) { return CountedWindow{{ops::Causal{}, ops::Window{100}}, &asked}; };
    const ops::Attention y = ops::attend_with(mask(forward), ops::PlainScore{}, ops::SoftmaxNormaliser{}, c.q, c.k, c.v,
                                              c.queries, c.keys, c.options);
    ops::AttentionGrads grads{Tensor::zeros(c.q.shape()), Tensor::zeros(c.k.shape()), Tensor::zeros(c.v.shape())};
    ops::attend_block_backward_with(mask(backward), ops::PlainScore{}, ops::SoftmaxNormaliser{}, grads, c.dout, c.q,
                                    c.k, c.v, y.lse, ops::attention_delta(c.dout, y.out, {}, c.options), c.queries,
                                    c.keys, c.options);
    return std::pair(forward / blocks, backward / blocks);
  };
  const auto [forward, backward] = asked_per_block(1200);
  EXPECT_LT(forward, 400);
  EXPECT_LT(backward, 400);
}

// dQ is added block after block by several threads; ThreadSanitizer sees these threads, it does not see OpenMP's.
TEST(AttentionCore, TurnsOrderThreads) {
  constexpr int kKeyBlocks = 4, kBlocks = 64;
  for (int round = 0; round < 20; ++round) {
    ops::core::Turns turns(1, 1, kBlocks);
    std::vector<int> sum(kBlocks, 0);
    std::vector<std::thread> threads;
    for (int key_block = 0; key_block < kKeyBlocks; ++key_block)
      threads.emplace_back([&, key_block] {
        for (int block = 0; block < kBlocks; ++block) {
          turns.wait(0, 0, block, key_block);
          auto& slot = sum[static_cast<size_t>(block)];
          slot = slot * 10 + key_block + 1;
          turns.done(0, 0, block, key_block);
        }
      });
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(sum, std::vector<int>(kBlocks, 1234));
  }
}

TEST(AttentionCore, BackwardOfUsersFunctorsEqualsFiniteDifferences) {
  AttentionCase c({1, 9, 9, 2, 1, 3, 2}, kF64);
  Quadratic score{0.1};
  auto run = [&] {
    return ops::attend_with(Dilated{}, score, ops::SoftmaxNormaliser{}, c.q, c.k, c.v, c.queries, c.keys, c.options);
  };
  ops::Attention y = run();
  Tensor delta = ops::attention_delta(c.dout, y.out, {}, c.options);
  ops::AttentionGrads grads{Tensor::zeros(c.q.shape(), kF64), Tensor::zeros(c.k.shape(), kF64),
                            Tensor::zeros(c.v.shape(), kF64)};
  ops::attend_block_backward_with(Dilated{}, score, ops::SoftmaxNormaliser{}, grads, c.dout, c.q, c.k, c.v, y.lse,
                                  delta, c.queries, c.keys, c.options);
  auto loss = [&] {
    ops::Attention z = run();
    double sum = 0;
    for (int64_t i = 0; i < z.out.num_elements(); ++i) sum += z.out.data<double>()[i] * c.dout.data<double>()[i];
    return sum;
  };
  std::pair<Tensor*, Tensor*> pairs[] = {{&c.q, &grads.dq}, {&c.k, &grads.dk}};
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

// Signed attention: out = sum_j sign(s_j) exp(|s_j| - lse) v_j, lse = log sum_j exp(|s_j|). State: largest |s|, sum.
struct SignedNormaliser {
  static constexpr bool kHasStatistic = true, kIsBase2 = false;
  static constexpr double kMasked = -__builtin_inf();
  static constexpr int kStateRows = 2;
  template <class V>
  struct State {
    V rows[kStateRows];
  };
  template <class V>
  static V exp(V x) {
    using T = typename ops::core::LaneTraits<V>::Element;
    return ops::core::lane_exp2(x * T(1.44269504088896340736));
  }
  template <class T>
  static State<T> init(T lse, bool has) {
    return {has ? lse : T(kMasked), has && lse != T(kMasked) ? T(1) : T(0)};
  }
  template <class V>
  static V key(V s) {
    V none = V{} + typename ops::core::LaneTraits<V>::Element(kMasked);
    return s == none ? none : s < V{} ? -s : s;
  }
  template <class V>
  static V shift(const State<V>& state) {
    V none = V{} + typename ops::core::LaneTraits<V>::Element(kMasked);
    return state.rows[0] == none ? V{} : state.rows[0];
  }
  template <class V>
  static V rescale(State<V>& state, V tile_max) {
    V old = state.rows[0];
    state.rows[0] = ops::core::lane_max(tile_max, old);
    V factor = exp(old - shift(state));
    state.rows[1] = state.rows[1] * factor;
    return factor;
  }
  template <class V>
  static V weight(V s, V shift) {
    V w = exp(key(s) - shift);
    return s < V{} ? -w : w;
  }
  template <class V>
  static V counted(V weight) {
    return weight < V{} ? -weight : weight;
  }
  template <class V>
  static void add(State<V>& state, V weights) {
    state.rows[1] += weights;
  }
  template <class T>
  static ops::Final<T> finish(const State<T>& state) {
    if (state.rows[1] == 0) return {0, T(kMasked)};
    return {1 / state.rows[1], state.rows[0] + std::log(state.rows[1])};
  }
  template <class T>
  static T backward_shift(T lse) {
    return lse == T(kMasked) ? -T(kMasked) : lse;
  }
  template <class V>
  static V dscore(V, V weight, V dweight, V delta) {
    return counted(weight) * dweight - weight * delta;
  }
};

// out = sum_j sigmoid(s_j) v_j. No state, no statistic; backward reads the weight.
struct SigmoidNormaliser : ops::SumNormaliser {
  static constexpr double kMasked = -__builtin_inf();
  template <class V>
  static V weight(V s, V) {
    using T = typename ops::core::LaneTraits<V>::Element;
    V e = ops::core::lane_exp2((s < V{} ? s : -s) * T(1.44269504088896340736));
    return (s < V{} ? e : V{} + 1) / (1 + e);
  }
  template <class V>
  static V dscore(V, V weight, V dweight, V) {
    return dweight * weight * (1 - weight);
  }
};

// Weights and statistic of one row of scores, as the two normalisers above define them.
std::vector<double> weights_of(SignedNormaliser, const std::vector<double>& scores, double& lse) {
  double sum = 0;
  for (double s : scores) sum += std::exp(std::abs(s));
  lse = std::log(sum);
  std::vector<double> w;
  for (double s : scores) w.push_back((s < 0 ? -1 : 1) * std::exp(std::abs(s)) / sum);
  return w;
}
std::vector<double> weights_of(SigmoidNormaliser, const std::vector<double>& scores, double&) {
  std::vector<double> w;
  for (double s : scores) w.push_back(1 / (1 + std::exp(-s)));
  return w;
}

template <class Normaliser>
void expect_normaliser_is_right(const char* what) {
  SCOPED_TRACE(what);
  AttentionCase c({1, 70, 130, 2, 1, 4, 3}, kF64, Order::offset);
  ops::AttentionOptions shape_only;
  shape_only.normaliser = Normaliser::kHasStatistic ? ops::Normaliser::softmax : ops::Normaliser::sum;
  auto run = [&](const std::vector<int64_t>& cuts) {
    ops::AttentionState state = ops::attention_state(c.q, 3, shape_only);
    for (size_t i = 0; i + 1 < cuts.size(); ++i) {
      ops::AttentionTokens keys{c.keys.positions.slice(1, cuts[i], cuts[i + 1]), {}};
      ops::attend_block_with(ops::Causal{}, ops::PlainScore{}, Normaliser{}, state, c.q,
                             c.k.slice(1, cuts[i], cuts[i + 1]), c.v.slice(1, cuts[i], cuts[i + 1]), c.queries, keys,
                             c.options);
    }
    return state;
  };
  ops::AttentionState whole = run({0, 130}), pieces = run({0, 33, 64, 130});
  expect_near(pieces.out, reference::numbers(whole.out), 1e-12, "pieces");
  if (Normaliser::kHasStatistic) expect_near(pieces.lse, reference::numbers(whole.lse), 1e-12, "pieces' statistic");

  const double *q = c.q.data<double>(), *k = c.k.data<double>(), *v = c.v.data<double>();
  for (int64_t i = 0; i < 70; ++i)
    for (int64_t h = 0; h < 2; ++h) {
      std::vector<double> scores;
      for (int64_t j = 0; j < 130 && c.keys.positions.data<int32_t>()[j] <= c.queries.positions.data<int32_t>()[i];
           ++j) {
        double s = 0;
        for (int64_t e = 0; e < 4; ++e) s += q[(i * 2 + h) * 4 + e] * k[j * 4 + e] / 2;
        scores.push_back(s);
      }
      double lse = 0;
      std::vector<double> w = weights_of(Normaliser{}, scores, lse);
      for (int64_t e = 0; e < 3; ++e) {
        double want = 0;
        for (size_t j = 0; j < w.size(); ++j) want += w[j] * v[j * 3 + static_cast<size_t>(e)];
        EXPECT_NEAR(whole.out.data<double>()[(i * 2 + h) * 3 + e], want, 1e-11);
      }
      if (Normaliser::kHasStatistic) { EXPECT_NEAR(whole.lse.data<double>()[i * 2 + h], lse, 1e-11); }
    }

  // Gradients of sum(out * dout) + sum(statistic * dlse) against central differences.
  Tensor delta = Normaliser::kHasStatistic ? ops::attention_delta(c.dout, whole.out, c.dlse, shape_only) : Tensor();
  ops::AttentionGrads grads{Tensor::zeros(c.q.shape(), kF64), Tensor::zeros(c.k.shape(), kF64),
                            Tensor::zeros(c.v.shape(), kF64)};
  ops::attend_block_backward_with(ops::Causal{}, ops::PlainScore{}, Normaliser{}, grads, c.dout, c.q, c.k, c.v,
                                  whole.lse, delta, c.queries, c.keys, c.options);
  auto loss = [&] {
    ops::AttentionState z = run({0, 130});
    double sum = 0;
    for (int64_t i = 0; i < z.out.num_elements(); ++i) sum += z.out.data<double>()[i] * c.dout.data<double>()[i];
    for (int64_t i = 0; Normaliser::kHasStatistic && i < z.lse.num_elements(); ++i)
      sum += z.lse.data<double>()[i] * c.dlse.data<double>()[i];
    return sum;
  };
  std::pair<Tensor*, Tensor*> pairs[] = {{&c.q, &grads.dq}, {&c.k, &grads.dk}, {&c.v, &grads.dv}};
  for (auto [x, dx] : pairs)
    for (int64_t i = 0; i < x->num_elements(); i += 7) {
      double& at = x->template mutable_data<double>()[i];
      double old = at;
      at = old + 1e-5;
      double high = loss();
      at = old - 1e-5;
      double low = loss();
      at = old;
      EXPECT_NEAR((high - low) / 2e-5, dx->template data<double>()[i], 1e-6) << i;
    }
}

TEST(AttentionCore, TakesNormalisersOfTheUsersOwn) {
  expect_normaliser_is_right<SignedNormaliser>("signed");
  expect_normaliser_is_right<SigmoidNormaliser>("sigmoid");
}

}  // namespace
}  // namespace weft
