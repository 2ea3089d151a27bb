// Error texts of the attention calls, and functors of the user's own.
#include <thread>

#include "tests/ops/attention_case.h"
#include "weft/ops/attention_core.h"

namespace weft {
namespace {

using namespace test;

struct ErrorRow {
  void (*change)(AttentionCase&);
  std::vector<const char*> texts;
};

TEST(AttentionErrors, SayWhatIsWrongWithTheValues) {
  const ErrorRow rows[] = {
      {[](AttentionCase& c) {
         c.q = random_normal({2, 6, 32}, "q");
       },
       {"attend: q is [2, 6, 32]", "[batch, tokens, heads, width]"}},
      {[](AttentionCase& c) {
         c.q = Tensor::zeros({2, 6, 4, 8}, kI32);
       },
       {"q is [2, 6, 4, 8] i32", "cast it"}},
      {[](AttentionCase& c) {
         c.k = random_normal({2, 9, 2, 8}, "k", kBF16);
       },
       {"k is [2, 9, 2, 8] bf16", "f32"}},
      {[](AttentionCase& c) {
         c.k = random_normal({3, 9, 2, 8}, "k");
       },
       {"batch", "[2, 6, 4, 8]", "[3, 9, 2, 8]"}},
      {[](AttentionCase& c) {
         c.k = random_normal({2, 9, 2, 7}, "k");
       },
       {"key width", "[2, 9, 2, 7]"}},
      {[](AttentionCase& c) {
         c.k = random_normal({2, 9, 3, 8}, "k");
       },
       {"4 query heads are not a multiple of 3 key heads"}},
      {[](AttentionCase& c) {
         c.v = random_normal({2, 8, 2, 8}, "v");
       },
       {"keys and values differ", "[2, 9, 2, 8]", "[2, 8, 2, 8]"}},
      {[](AttentionCase& c) {
         c.v = random_normal({2, 9, 8, 2}, "v").transpose(2, 3);
       },
       {"last dimension of v", "stride 2", "contiguous copy"}},
      {[](AttentionCase& c) { c.queries.positions = {}; }, {"query positions are undefined", "[2, 6] i32"}},
      {[](AttentionCase& c) { c.keys.positions = c.queries.positions; },
       {"key positions are [2, 6] i32", "[2, 9] i32"}},
      {[](AttentionCase& c) { c.options.mask.same_document = true; },
       {"same_document", "query documents are undefined"}},
      {[](AttentionCase& c) { c.use_documents(3), c.keys.documents = {}; }, {"key documents are undefined"}},
      {[](AttentionCase& c) { c.options.mask.window = -1; }, {"window is -1"}},
      {[](AttentionCase& c) { c.options.mask.prefix = -2; }, {"prefix is -2"}},
      {[](AttentionCase& c) { c.options.score.softcap = -1; }, {"softcap is -1"}},
      {[](AttentionCase& c) { c.options.score.alibi_slopes = Tensor::zeros({2}); },
       {"alibi_slopes are [2] f32", "[4]"}},
      {[](AttentionCase& c) { c.options.dropout = 1; }, {"dropout is 1", "[0, 1)"}},
      {[](AttentionCase& c) { c.options.scale = NAN; }, {"scale is nan"}},
      {[](AttentionCase& c) { c.options.normaliser = ops::Normaliser::sum, c.options.score.softcap = 3; },
       {"sum normaliser has no softcap instance", "supported:"}},
  };
  for (const ErrorRow& row : rows) {
    AttentionCase c({2, 6, 9, 4, 2, 8, 8}, kF32);
    row.change(c);
    try {
      c.forward();
      ADD_FAILURE() << "no error with " << row.texts[0];
    } catch (const Error& e) {
      for (const char* text : row.texts)
        EXPECT_NE(std::string(e.what()).find(text), std::string::npos) << e.what() << "\nlacks " << text;
    }
  }
}

TEST(AttentionErrors, StateAndGradientsMustFit) {
  AttentionCase c({2, 6, 9, 4, 2, 8, 8}, kF32);
  ops::AttentionState state = ops::attention_state(c.q, 7, c.options);
  try {
    ops::attend_block(state, c.q, c.k, c.v, c.queries, c.keys, c.options);
    ADD_FAILURE();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("attend_block: state.out is [2, 6, 4, 7] f32"), std::string::npos) << e.what();
  }
  ops::Attention y = c.forward();
  EXPECT_THROW(
      ops::attend_backward(random_normal({2, 6, 4, 7}, "x"), {}, c.q, c.k, c.v, y, c.queries, c.keys, c.options),
      Error);
  EXPECT_THROW(ops::attend_backward(c.dout, random_normal({2, 6}, "x"), c.q, c.k, c.v, y, c.queries, c.keys, c.options),
               Error);
  c.options.normaliser = ops::Normaliser::sum;
  EXPECT_THROW(ops::attention_column_mass(c.q, c.k, y.lse, c.queries, c.keys, c.options), Error);
  EXPECT_THROW(ops::attention_delta(c.dout, y.out, c.dlse, c.options), Error);
}

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

TEST(AttentionCore, FinishedPartialsMergeLikeOneCall) {
  for (double a : {double{-INFINITY}, -3.0, 700.0})
    for (double b : {double{-INFINITY}, 2.0, 698.0}) {
      auto m = ops::SoftmaxNormaliser::merge(a, b);
      if (std::isinf(a) && std::isinf(b)) {
        EXPECT_EQ(m.statistic, -INFINITY);
        EXPECT_EQ(m.a + m.b, 0);
      } else {
        EXPECT_NEAR(m.a + m.b, 1, 1e-12);
        EXPECT_NEAR(m.statistic, std::max(a, b) + std::log1p(std::exp(std::min(a, b) - std::max(a, b))), 1e-12);
      }
    }
}

}  // namespace
}  // namespace weft
