// Groups of parameters on GPUs against one at a time on the CPU: more than one launch holds, empty, odd and unaligned ones.
#include <gtest/gtest.h>

#include "tests/reference/values.h"
#include "tests/support/random.h"
#include "weft/core/stream.h"
#include "weft/ops/elementwise.h"
#include "weft/ops/optim.h"

namespace weft {
namespace {

using reference::values;

std::vector<ops::OptimTensors> make_group(const std::vector<Shape>& shapes, bool has_moment2) {
  std::vector<ops::OptimTensors> group;
  for (size_t i = 0; i < shapes.size(); ++i) {
    Tensor param = test::random_normal(shapes[i], str("param", i));
    if (i % 5 == 1 && param.num_dims() == 1) {  // begins beside the alignment that wide loads want
      Tensor longer = test::random_normal({param.size(0) + 1}, str("param", i));
      param = longer.slice(0, 1, param.size(0) + 1);
    }
    group.push_back({.param = param,
                     .grad = test::random_normal(shapes[i], str("grad", i)),
                     .moment1 = test::random_normal(shapes[i], str("moment1", i)),
                     .moment2 = has_moment2 ? ops::abs(test::random_normal(shapes[i], str("moment2", i))) : Tensor(),
                     .working = i % 2 ? Tensor::zeros(shapes[i], kBF16) : Tensor()});
  }
  return group;
}

std::vector<ops::OptimTensors> there(const std::vector<ops::OptimTensors>& group) {
  std::vector<ops::OptimTensors> out = group;
  for (ops::OptimTensors& t : out)
    for (Tensor* each : {&t.param, &t.grad, &t.moment1, &t.moment2, &t.working})
      if (each->defined()) *each = ops::to(*each, Device::cuda());
  return out;
}

void expect_equal(const std::vector<ops::OptimTensors>& got, const std::vector<ops::OptimTensors>& want) {
  for (size_t i = 0; i < want.size(); ++i) {
    SCOPED_TRACE(str("tensor ", i, " ", want[i].param));
    auto compare = [](const Tensor& a, const Tensor& b, double bound) {
      if (!b.defined()) return;
      auto x = values(a.cpu()), y = values(b);
      ASSERT_EQ(x.size(), y.size());
      for (size_t k = 0; k < x.size(); ++k) ASSERT_NEAR(x[k], y[k], bound * (1 + std::abs(y[k]))) << "at " << k;
    };
    compare(got[i].param, want[i].param, 2e-6);
    compare(got[i].moment1, want[i].moment1, 2e-6);
    compare(got[i].moment2, want[i].moment2, 2e-6);
    compare(got[i].working, want[i].working, 1e-2);
  }
}

TEST(OptimOnDevices, GroupsEqualTheCpu) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU: " << cuda_problem();
  std::vector<Shape> shapes{{0}, {1}, {3}, {4}, {40001}, {4096}, {4097}, {64, 65}};
  for (int64_t i = 0; i < 50; ++i) shapes.push_back({7 + 3 * i});
  std::vector<ops::OptimTensors> group = make_group(shapes, true), on_device = there(group);
  for (int64_t step = 1; step <= 2; ++step) {
    const ops::AdamWStep o{.lr = 0.01, .weight_decay = 0.1, .step = step, .grad_scale = 0.5};
    ops::adamw_(group, o);
    ops::adamw_(on_device, o);
    const ops::ScheduleFreeStep free{.lr = 0.01, .weight_decay = 0.1, .average = 0.3, .grad_scale = 0.5};
    ops::schedule_free_adamw_(group, free);
    ops::schedule_free_adamw_(on_device, free);
  }
  expect_equal(on_device, group);

  group = make_group(shapes, false);
  on_device = there(group);
  for (double momentum : {0.0, 0.9}) {
    const ops::LionStep lion{.lr = 0.01, .weight_decay = 0.1, .grad_scale = 0.5};
    const ops::SgdStep sgd{
        .lr = 0.01, .momentum = momentum, .weight_decay = 0.1, .is_nesterov = momentum > 0, .grad_scale = 0.5};
    for (auto* tensors : {&group, &on_device}) {
      ops::lion_(*tensors, lion);
      ops::sgd_(*tensors, sgd);
    }
  }
  expect_equal(on_device, group);

  group = make_group({{8, 24}, {24, 8}, {8, 24}, {5, 7}, {0, 3}, {8, 24}, {24, 8}, {1, 9}}, false);
  on_device = there(group);
  for (bool is_nesterov : {true, false}) {
    const ops::MuonStep o{.lr = 0.02, .weight_decay = 0.1, .is_nesterov = is_nesterov, .grad_scale = 0.5};
    const int64_t waits = num_device_waits();
    ops::muon_(on_device, o);
    EXPECT_EQ(num_device_waits(), waits);
    ops::muon_(group, o);
  }
  expect_equal(on_device, group);
}

}  // namespace
}  // namespace weft
