// Error texts of the attention calls, and functors of the user's own.
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
