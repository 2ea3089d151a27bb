// What recompute() keeps beside its inputs, and merge() of attention over disjoint keys. When gradients of a recomputed function are final is
// in final_grad_test.cpp.
#include "weft/autograd/recompute.h"

#include "tests/distributed/context_case.h"
#include "tests/distributed/counting_communicator.h"
#include "tests/support/errors.h"
#include "weft/autograd/attention_merge.h"
#include "weft/autograd/functions.h"
#include "weft/autograd/ranks.h"
#include "weft/autograd/record.h"
#include "weft/core/allocator.h"

namespace weft::test {
namespace {

using Doubles = std::vector<double>;

Doubles numbers(const Tensor& x) { return x.defined() ? ops::cast(x, kF64).to_vector<double>() : Doubles(); }

// x^2 with the count of how often it is computed.
Var counted_square(const Var& x, int& count) {
  const Tensor y = kept_by_recompute("counted_square", [&] {
    ++count;
    return std::vector<Tensor>{ops::square(x.value())};
  })[0];
  return record("counted_square", y, {x},
                [x = Saved(x.value())](const Tensor& dy, Wants) { return Grads{ops::square_backward(dy, x)}; });
}

TEST(Recompute, HandsBackWhatTheFirstRunGave) {
  int count = 0;
  const Var x = variable(random_normal({5}, "x", kF64));
  auto f = [&](std::span<const Var> in) {
    return std::vector<Var>{counted_square(in[0], count) * counted_square(in[0] * 3.0, count)};
  };
  const Var y = recompute(f, {&x, 1})[0];
  EXPECT_EQ(count, 2);
  backward(sum_all(y), {}, {.keeps_graph = true});
  const Doubles grad = numbers(x.grad());
  for (size_t i = 0; i < grad.size(); ++i) EXPECT_NEAR(grad[i], 36 * std::pow(numbers(x.value())[i], 3), 1e-12);
  backward(sum_all(y));  // a graph that is kept keeps them too
  EXPECT_EQ(count, 2);
  for (size_t i = 0; i < grad.size(); ++i) EXPECT_EQ(numbers(x.grad())[i], 2 * grad[i]);
}

TEST(Recompute, InsideRecomputeComputesOnceInAll) {
  int count = 0;
  const Var x = variable(random_normal({5}, "x", kF64));
  auto innermost = [&](std::span<const Var> in) { return std::vector<Var>{counted_square(in[0], count) + 1.0}; };
  auto inner = [&](std::span<const Var> in) {
    const Var h = counted_square(in[0], count);
    return std::vector<Var>{recompute(innermost, {&h, 1})[0] * counted_square(h, count)};
  };
  auto outer = [&](std::span<const Var> in) {
    const Var h = tanh(in[0]);
    return std::vector<Var>{recompute(inner, {&h, 1})[0] + counted_square(h, count)};
  };
  backward(sum_all(recompute(outer, {&x, 1})[0]));
  EXPECT_EQ(count, 4);
  const Doubles grad = numbers(x.grad());
  const Var again = variable(x.value());
  backward(sum_all(outer({&again, 1})[0]));
  EXPECT_EQ(grad, numbers(again.grad()));
}

// Diagnostics of the first run, which the second one leaves out.
TEST(Recompute, KeepsNothingThatNoGradientGoesThrough) {
  int count = 0;
  const Var x = variable(random_normal({5}, "x", kF64));
  auto f = [&](std::span<const Var> in) {
    if (!is_recomputing()) {
      NoGrad no_grad;
      counted_square(in[0] * 7.0, count);
    }
    const Var y = counted_square(in[0], count);
    if (is_recomputing()) {
      NoGrad no_grad;
      EXPECT_EQ(numbers(counted_square(in[0] * 2.0, count).value()), numbers((y * 4.0).value()));
    }
    return std::vector<Var>{y};
  };
  backward(sum_all(recompute(f, {&x, 1})[0]));
  EXPECT_EQ(count, 3);
  EXPECT_EQ(numbers(x.grad()), numbers((x * 2.0).value()));
}

TEST(Recompute, ThatAsksForOtherResultsInBackwardIsAnError) {
  const Var x = variable(random_normal({5}, "x", kF64));
  for (int in_forward : {0, 1, 2}) {
    int count = 0;
    bool is_first = true;
    auto f = [&](std::span<const Var> in) {
      Var y = in[0] * 1.0;
      for (int i = 0; i < (is_first ? in_forward : 1); ++i) y = counted_square(y, count);
      is_first = false;
      return std::vector<Var>{y};
    };
    const Var y = recompute(f, {&x, 1})[0];
    if (in_forward == 1) EXPECT_NO_THROW(backward(sum_all(y)));
    else
      EXPECT_EQ(
          error_of([&] { backward(sum_all(y)); },
                   in_forward == 0
                       ? std::vector<std::string_view>{"number 0 is missing", "asks for counted_square", "same calls"}
                       : std::vector<std::string_view>{"number 1 is counted_square", "asks for no more"}),
          "");
  }
}

// out and lse of a call stay from forward to backward, and no longer.
TEST(Recompute, KeepsTheResultOfAttentionAndNothingElseOfIt) {
  constexpr int64_t T = 64, H = 4, K = 16;
  const Var x = variable(random_normal({1, T, H, K}, "x"));
  const ops::AttentionTokens tokens{make_positions(1, T, Order::sorted, 1), {}};
  const void *first = nullptr, *second = nullptr;
  auto f = [&](std::span<const Var> in) {
    const Var q = tanh(in[0]);
    auto [out, lse] = attend(q, q * 2.0, q * 3.0, tokens, tokens, {.dropout = 0.2, .dropout_rng = Rng(3)});
    (is_recomputing() ? second : first) = out.value().raw();
    return std::vector<Var>{exp(out) * unsqueeze(lse, -1)};
  };
  auto current = [] { return allocator(Device::cpu()).stats().current_bytes; };
  auto bytes_of = [&](const Shape& shape) {  // with what the allocator adds
    const int64_t before = current();
    const Tensor one = Tensor::empty(shape);
    return current() - before;
  };
  const int64_t out = bytes_of({1, T, H, K}), lse = bytes_of({1, T, H}), before = current();
  {
    const Var y = recompute(f, {&x, 1})[0];
    EXPECT_EQ(current() - before, out + lse + out);  // and y
    backward(sum_all(y));
    EXPECT_EQ(first, second) << "the core did not run again";
    EXPECT_EQ(current() - before, out + out);  // y, and the gradient of x
  }
  const Var again = variable(x.value());
  backward(sum_all(f({&again, 1})[0]));
  EXPECT_EQ(numbers(x.grad()), numbers(again.grad()));
}

struct OfRank {
  int64_t bytes = 0, exchanges = 0;
  Doubles y = {};
  std::vector<Doubles> grads = {};
};

OfRank attention_of_rank(Communicator& comm, const Sequence& s, const Layout& layout, Scheme scheme,
                         const HopPlan& plan, bool is_recomputed) {
  CountingCommunicator counting(comm);
  const RankCase mine(s.c, layout, comm.rank());
  const dist::ContextRanks ranks(counting, dist::default_options(scheme, comm.size(), mine.q.size(2)));
  ops::AttentionOptions options = mine.options;
  options.score.query_bias = options.score.key_bias = {};
  const std::vector<Var> inputs{variable(mine.q), variable(mine.k), variable(mine.v),
                                variable(mine.options.score.query_bias), variable(mine.options.score.key_bias)};
  auto f = [&, shared_plan = std::make_shared<const HopPlan>(plan)](std::span<const Var> in) {
    auto [out, lse] = context_attention(ranks, scheme, in[0] * 1.0, in[1] * 1.0, in[2] * 1.0, mine.here, options,
                                        shared_plan, {.query = in[3], .key = in[4]});
    return std::vector<Var>{out * out, lse};
  };
  const std::vector<Var> y = is_recomputed ? recompute(f, inputs) : f(inputs);
  backward(sum_all(y[0] * mine.dout) + sum_all(y[1] * mine.dlse));
  OfRank of{.bytes = counting.bytes, .exchanges = counting.exchanges, .y = numbers(y[0].value())};
  for (const Var& input : inputs) of.grads.push_back(numbers(input.grad()));
  return of;
}

TEST(Recompute, OfAttentionOverRanksSendsTheMessagesOfOneForwardAndOneBackward) {
  Sequence s = make_sequence("documents", 32, kF64, {.B = 2, .H = 4, .G = 2, .K = 4, .V = 3});
  use_documents(s, 10);
  s.c.use_biases(true);
  s.c.options.dropout = 0.3;
  for (int ranks : {1, 2, 4})
    for (Scheme scheme : dist::all_schemes()) {
      SCOPED_TRACE(str(to_string(scheme), ", ", ranks, " ranks"));
      const Layout layout = Layout::zigzag(32, ranks);
      const HopPlan plan = plan_hops(layout, s.mask);
      dist::run_thread_ranks(ranks, [&](Communicator& comm) {
        const OfRank once = attention_of_rank(comm, s, layout, scheme, plan, false),
                     again = attention_of_rank(comm, s, layout, scheme, plan, true);
        EXPECT_EQ(again.bytes, once.bytes);
        EXPECT_EQ(again.exchanges, once.exchanges);
        EXPECT_TRUE(ranks == 1 || once.bytes > 0);
        EXPECT_EQ(again.y, once.y);
        EXPECT_EQ(again.grads, once.grads);
      });
    }
}

TEST(MergeOfAttention, OverTwoSetsOfKeysIsOneCallOverBothWithItsGradients) {
  for (auto normaliser : {ops::Normaliser::softmax, ops::Normaliser::sum, ops::Normaliser::signed_softmax})
    for (int64_t cut : {0, 1, 20, 31}) {
      AttentionCase c({2, 17, 31, 4, 2, 8, 5}, kF64, Order::offset, Order::shuffled);
      c.options.normaliser = normaliser;
      c.options.mask.window = 12;
      SCOPED_TRACE(str("cut ", cut));
      auto run = [&](bool is_merged) {
        const std::vector<Var> in{variable(c.q), variable(c.k), variable(c.v)};
        auto part = [&](int64_t begin, int64_t end) {
          const ops::AttentionTokens keys{c.keys.positions.slice(1, begin, end), {}};
          return attend(in[0], slice(in[1], 1, begin, end), slice(in[2], 1, begin, end), c.queries, keys, c.options);
        };
        const auto [out, lse] = is_merged ? merge(part(0, cut), part(cut, 31)) : part(0, 31);
        Var sum = sum_all(out * c.dout);
        if (lse.defined())
          sum = sum + sum_all(where(equal(lse.value(), -INFINITY), Tensor::zeros({}, kF64), lse) * c.dlse);
        backward(sum);
        return std::vector<Tensor>{out.value(), lse.value(), in[0].grad(), in[1].grad(), in[2].grad()};
      };
      const std::vector<Tensor> merged = run(true), whole = run(false);
      const char* names[] = {"out", "lse", "dq", "dk", "dv"};
      for (size_t i = 0; i < whole.size(); ++i) expect_near(merged[i], reference::numbers(whole[i]), 1e-13, names[i]);
    }
}

TEST(MergeOfAttention, TakesRoundedOutputsAndRefusesStatesThatDoNotMatch) {
  AttentionCase c({1, 5, 9, 2, 1, 8, 8}, kBF16);
  const auto a = attend(Var(c.q), Var(c.k), Var(c.v), c.queries, c.keys, c.options);
  EXPECT_EQ(merge(a, a)[0].dtype(), kF32);
  EXPECT_EQ(error_of([&] { merge(a, {a[0], Var()}); }, {"merge: only a has an lse", "one normaliser"}), "");
  EXPECT_EQ(error_of([&] { merge(a, {}); }, {"merge: a side without out"}), "");
}

}  // namespace
}  // namespace weft::test
