// Gradients through recur() and decay_scan(), and what they record.
#include "weft/autograd/recurrence.h"

#include <gtest/gtest.h>

#include "tests/support/random.h"
#include "weft/autograd/functions.h"
#include "weft/autograd/gradient_check.h"

namespace weft {
namespace {

using namespace test;

using In = std::span<const Var>;

void check(const char* name, const std::vector<Shape>& shapes, const std::function<Var(In)>& f) {
  SCOPED_TRACE(name);
  std::vector<Tensor> inputs;
  for (const Shape& shape : shapes) inputs.push_back(random_normal(shape, str(name, inputs.size()), kF64));
  GradientCheck result = check_gradients(f, inputs);
  EXPECT_TRUE(result.passed) << result.report;
  EXPECT_GT(result.num_checked, 0);
}
Var both(const std::array<Var, 2>& pair) { return sum_all(pair[0] * pair[0]) + sum_all(square(pair[1])); }
Tensor documents() { return Tensor::from<int32_t>({0, 0, 0, 1, 1, -1, 1, 2, 2}, {1, 9}); }

TEST(Gradient, OfRecurrences) {
  check("recur plain", {{2, 5, 1, 3}, {2, 5, 1, 3}, {2, 5, 2, 2}}, [](In in) {
    return both(recur({in[0], in[1], in[2]}, {.scale = 0.5}));
  });
  check("recur delta", {{1, 9, 2, 3}, {1, 9, 2, 3}, {1, 9, 2, 2}, {1, 9, 2}, {1, 9, 2}, {1, 2, 3, 2}}, [](In in) {
    return both(recur({.q_BTGK = in[0],
                       .k_BTGK = in[1] * 0.5,
                       .v_BTHV = in[2],
                       .log_decay = log_sigmoid(in[3]),
                       .beta = sigmoid(in[4]),
                       .state = in[5],
                       .documents = documents()},
                      {.chunk = 4}));
  });
  check("recur delta key channels", {{1, 9, 1, 3}, {1, 9, 1, 3}, {1, 9, 1, 2}, {1, 9, 1, 3}, {1, 9, 1}}, [](In in) {
    return both(recur({in[0], in[1] * 0.5, in[2], log_sigmoid(in[3]), sigmoid(in[4])}, {.chunk = 4}));
  });
  check("recur value channels", {{1, 9, 1, 3}, {1, 9, 1, 3}, {1, 9, 1, 2}, {1, 9, 1, 2}}, [](In in) {
    return both(recur({in[0], in[1], in[2], log_sigmoid(in[3])}, {.side = ops::DecaySide::value, .chunk = 4}));
  });
  check("recur per head, state only", {{1, 6, 1, 3}, {1, 6, 1, 3}, {1, 6, 2, 2}, {2}}, [](In in) {
    return recur({in[0], in[1], in[2], -softplus(in[3])})[1];
  });
}

TEST(Gradient, OfDecayScans) {
  check("decay_scan", {{1, 9, 3}, {1, 9, 3}, {1, 3}}, [](In in) {
    return both(
        decay_scan({.x_BTD = in[0], .log_decay = log_sigmoid(in[1]), .state = in[2], .documents = documents()}));
  });
  check("decay_scan per channel", {{2, 5, 3}, {3}}, [](In in) { return both(decay_scan({in[0], -softplus(in[1])})); });
}

TEST(Recur, RefusesAChangeOfWhatBackwardReads) {
  Tensor v = random_normal({1, 4, 1, 2}, "v");
  Var q = variable(random_normal({1, 4, 1, 3}, "q"));
  Var y = recur({q, q, v})[0];
  v.mutable_data<float>()[0] = 3;
  EXPECT_THROW(backward(sum_all(y)), Error);
}

}  // namespace
}  // namespace weft
