// The gated linear recurrence and the element-wise one on GPUs against the float64 loops and differences of them: the cases of the CPU's
// tests, at lengths and widths around those of steps, chunks and tiles.
#include "tests/ops/recurrence_case.h"

namespace weft::test {
namespace {

INSTANTIATE_TEST_SUITE_P(OfGpu, RecurrenceEdges, testing::Values(Device::cuda()));

// A case that is computed on the GPU.
RecurrenceCase on_gpu(const RecurrenceSize& size, Gate gate, bool is_delta, DType dtype = kF64, double decay = 0.3) {
  RecurrenceCase c(size, gate, is_delta, dtype, decay);
  c.device = Device::cuda();
  return c;
}

class RecurrenceOnDevices : public testing::Test {
 protected:
  void SetUp() override {
    if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU: " << cuda_problem();
  }
};

TEST_F(RecurrenceOnDevices, EqualsTheLoopAtEveryLength) {
  for_each_kind([](Gate gate, bool is_delta) {
    for (int64_t T : {0, 1, 2, 8, 9, 63, 64, 65}) {
      RecurrenceCase c = on_gpu({.B = 1, .T = T, .G = 1, .H = 2, .K = 5, .V = 3}, gate, is_delta);
      if (T % 2 == 0) c.use_state();
      c.expect_forward();
    }
    for (int64_t chunk : {1, 7, 16}) {
      RecurrenceCase c = on_gpu({.B = 1, .T = 18, .G = 1, .H = 1, .K = 5, .V = 3}, gate, is_delta);
      c.options.chunk = chunk;
      c.use_state();
      c.expect_forward();
    }
  });
}

TEST_F(RecurrenceOnDevices, GradientsEqualDifferencesOfTheLoop) {
  for_each_kind([](Gate gate, bool is_delta) {
    for (int64_t T : {1, 64, 70}) {
      RecurrenceCase c = on_gpu({.B = 1, .T = T, .G = 1, .H = 1, .K = 4, .V = 3}, gate, is_delta);
      c.use_state();
      c.expect_gradients();
    }
    RecurrenceCase c = on_gpu({.B = 1, .T = 19, .G = 1, .H = 2, .K = 4, .V = 3}, gate, is_delta);
    c.options.chunk = 8;
    c.use_state();
    c.expect_gradients();
  });
}

TEST_F(RecurrenceOnDevices, DocumentsAndMaskedWritesEqualTheLoop) {
  for_each_kind([](Gate gate, bool is_delta) {
    for (int64_t T : {5, 65}) {
      RecurrenceCase c = on_gpu({.B = 2, .T = T, .G = 1, .H = 2, .K = 3, .V = 2}, gate, is_delta);
      c.use_state(), c.use_documents(), c.use_writes();
      c.expect_forward(), c.expect_gradients();
      c.in.state_document = Tensor::from<int32_t>({0, 7}, {2});  // of another document in the second row
      c.options.chunk = 20;
      c.expect_forward(), c.expect_gradients();
    }
  });
}

TEST_F(RecurrenceOnDevices, StrongDecayAndNoDecayEqualTheLoop) {
  for_each_kind([](Gate gate, bool is_delta) {
    if (gate == Gate::none) return;
    for (double g : {-50.0, 0.0}) {
      RecurrenceCase c = on_gpu({.B = 1, .T = 65, .G = 1, .H = 1, .K = 4, .V = 3}, gate, is_delta);
      c.in.log_decay = Tensor::full(c.in.log_decay.shape(), g, kF64);
      if (gate != Gate::head)  // among decays of another size
        for (int64_t i = 0; i < c.in.log_decay.num_elements(); i += 7) c.in.log_decay.mutable_data<double>()[i] = -0.25;
      c.use_state();
      c.expect_forward(), c.expect_gradients();
      RecurrenceCase narrow = on_gpu({.B = 1, .T = 65, .G = 1, .H = 1, .K = 4, .V = 3}, gate, is_delta, kF32);
      narrow.in.log_decay = ops::cast(c.in.log_decay, kF32);
      narrow.use_state();
      narrow.expect_forward(), narrow.expect_gradients(2e-3);
    }
  });
}

TEST_F(RecurrenceOnDevices, DeltaRuleAtTheEdgesOfBetaAndWithRepeatedKeys) {
  for (Gate gate : {Gate::none, Gate::key})
    for (double beta : {0.0, 1.0, 1.9})
      for (DType dtype : {kF64, kF32}) {
        RecurrenceCase c = on_gpu({.B = 1, .T = 65, .G = 1, .H = 1, .K = 4, .V = 3}, gate, true, dtype, 0.01);
        c.in.beta = Tensor::full(c.in.beta.shape(), beta, c.in.beta.dtype());
        c.in.k_BTGK = mapped(c.in.k_BTGK.shape(), "one key", dtype, [](int64_t i, double x) {
          return 0.5 + 1e-4 * x * static_cast<double>(i % 2);  // of length 1
        });
        c.use_state();
        c.expect_forward(dtype == kF32 ? 2e-4 : 0);
        if (dtype == kF64) c.expect_gradients(1e-6);
      }
}

// Of a loss of nothing but the last state.
TEST_F(RecurrenceOnDevices, WithoutTokensTheStateAndItsGradientPass) {
  RecurrenceCase c = on_gpu({.B = 2, .T = 0, .G = 1, .H = 2, .K = 4, .V = 3}, Gate::key, true);
  c.use_state();
  EXPECT_EQ(values(c.forward().state), values(c.in.state));
  EXPECT_EQ(values(c.backward().dstate), values(c.dstate));
  c.dstate = Tensor();
  EXPECT_EQ(values(c.backward().dstate), Numbers(c.in.state.num_elements(), 0.0));
}

// f32 and bf16 against the CPU in f64, at widths beyond one tile. Errors are shares of the largest element: tensor cores round what they
// multiply to bf16, one part in 512, and an element may be a sum of large terms.
TEST_F(RecurrenceOnDevices, NarrowTypesAreNearTheLoop) {
  for_each_kind([](Gate gate, bool is_delta) {
    for (DType dtype : {kF32, kBF16}) {
      RecurrenceCase c = on_gpu({.B = 1, .T = 70, .G = 1, .H = 1, .K = 72, .V = 67}, gate, is_delta, dtype, 0.1);
      c.use_state(), c.use_documents();
      RecurrenceCase wide = c;
      wide.device = Device::cpu();
      for (Tensor* t : {&wide.in.q_BTGK, &wide.in.k_BTGK, &wide.in.v_BTHV, &wide.in.log_decay, &wide.in.beta,
                        &wide.in.state, &wide.dout, &wide.dstate})
        if (t->defined()) *t = ops::cast(*t, kF64);
      auto results = [](const RecurrenceCase& of) -> std::vector<Tensor> {
        const ops::Recurrence y = of.forward();
        const ops::RecurrenceGrads grads = of.backward();
        return {y.out, y.state, grads.dq, grads.dk, grads.dv, grads.dlog_decay, grads.dbeta, grads.dstate};
      };
      const std::vector<Tensor> got = results(c), want = results(wide);
      for (size_t i = 0; i < want.size(); ++i) {
        ASSERT_EQ(got[i].defined(), want[i].defined());
        if (!want[i].defined()) continue;
        const Numbers a = values(got[i]), b = values(want[i]);
        double largest = 0, worst = 0;
        for (size_t j = 0; j < b.size(); ++j)
          largest = std::max(largest, std::abs(b[j])), worst = std::max(worst, std::abs(a[j] - b[j]));
        EXPECT_LE(worst, (dtype == kF32 ? 2e-6 : 0x1p-7) * largest) << c.name() << " result " << i;
      }
    }
  });
}

TEST_F(RecurrenceOnDevices, ReadsStridedTensorsSharesKeysAndRepeatsBitForBit) {
  RecurrenceCase c = on_gpu({.B = 2, .T = 19, .G = 2, .H = 6, .K = 4, .V = 5}, Gate::token, true);
  c.use_state();
  c.expect_forward(), c.expect_gradients();
  const ops::Recurrence want = c.forward();
  const ops::RecurrenceGrads grads = c.backward();
  for (Tensor* t : {&c.in.q_BTGK, &c.in.k_BTGK, &c.in.v_BTHV, &c.dout})
    *t = ops::contiguous(ops::to(*t, c.device).permute({3, 1, 2, 0})).permute({3, 1, 2, 0});
  for (Tensor* t : {&c.in.log_decay, &c.in.beta})
    *t = ops::contiguous(ops::to(*t, c.device).transpose(0, 2)).transpose(0, 2);
  const ops::Recurrence got = c.forward();
  EXPECT_EQ(values(got.out), values(want.out));
  EXPECT_EQ(values(got.state), values(want.state));
  const ops::RecurrenceGrads again = c.backward();
  EXPECT_EQ(values(again.dq), values(grads.dq));
  EXPECT_EQ(values(again.dk), values(grads.dk));
  EXPECT_EQ(values(again.dlog_decay), values(grads.dlog_decay));
}

// Two passes, the state alone and its gradient alone, into heads of larger tensors, against one pass.
TEST_F(RecurrenceOnDevices, PassesOverStatesEqualTheWhole) {
  for_each_kind([](Gate gate, bool is_delta) {
    for (int64_t T : {0, 7, 40}) {
      RecurrenceCase c = on_gpu({.B = 1, .T = T, .G = 1, .H = 2, .K = 5, .V = 3}, gate, is_delta);
      c.options.chunk = 16;
      c.use_state(), c.use_documents();
      const ops::RecurrenceInput in = c.there();
      const ops::Recurrence want = c.forward();
      const ops::RecurrenceGrads grads = c.backward();
      expect_close(ops::recur_state(in, c.options), values(want.state), c.name() + " state alone");
      expect_close(ops::recur_state_gradient(c.there(c.dout), c.there(c.dstate), in, c.options), values(grads.dstate),
                   c.name() + " its gradient alone");
      if (is_delta) continue;
      ops::RecurrenceInput without = in;
      without.state = {};
      const ops::RecurrenceStates kept = ops::recur_states(without, c.options);
      auto middle = [&](const Tensor& like) {
        Shape shape = like.shape();
        shape[2] *= 3;
        return Tensor::full(shape, 5, kF64, c.device).slice(2, like.size(2), 2 * like.size(2));
      };
      Tensor out = middle(in.v_BTHV);
      expect_close(ops::recur_into(out, in, c.options, &kept), values(want.state), c.name() + " state of two passes");
      expect_close(out, values(want.out), c.name() + " out of two passes");
      ops::RecurrenceGrads got{.dq = middle(in.q_BTGK), .dk = middle(in.k_BTGK), .dv = middle(in.v_BTHV)};
      ops::recur_backward_into(got, c.there(c.dout), c.there(c.dstate), in, c.options, {}, &kept);
      expect_close(got.dq, values(grads.dq), c.name() + " dq"),
          expect_close(got.dk, values(grads.dk), c.name() + " dk");
      expect_close(got.dv, values(grads.dv), c.name() + " dv");
      expect_close(got.dstate, values(grads.dstate), c.name() + " dstate");
      if (grads.dlog_decay.defined()) expect_close(got.dlog_decay, values(grads.dlog_decay), c.name() + " dlog_decay");
      const int64_t last = kept.states.size(2) - 1;
      const Tensor factor = kept.decays.select(2, last).unsqueeze(gate == Gate::value ? 2 : 3);
      expect_close(ops::mul(ops::contiguous(factor), in.state),
                   values(ops::sub(want.state, kept.states.select(2, last))), c.name() + " decays");
    }
  });
}

TEST_F(RecurrenceOnDevices, GivesOnlyTheGradientsThatAreWanted) {
  for (Gate gate : {Gate::head, Gate::key, Gate::value}) {
    RecurrenceCase c = on_gpu({.B = 1, .T = 20, .G = 1, .H = 2, .K = 4, .V = 3}, gate, gate != Gate::value);
    c.use_state();
    ops::RecurrenceGrads all = c.backward();
    const Tensor* want[] = {&all.dq, &all.dk, &all.dv, &all.dlog_decay, &all.dbeta, &all.dstate};
    for (int i = 0; i < 6; ++i) {
      ops::RecurrenceGrads one = c.backward({i == 0, i == 1, i == 2, i == 3, i == 4, i == 5});
      const Tensor* found[] = {&one.dq, &one.dk, &one.dv, &one.dlog_decay, &one.dbeta, &one.dstate};
      for (int j = 0; j < 6; ++j) {
        ASSERT_EQ(found[j]->defined(), i == j && want[j]->defined()) << c.name() << " gradient " << j;
        if (found[j]->defined()) expect_close(*found[j], values(*want[j]), str(c.name(), " gradient ", i));
      }
    }
    Tensor dout = c.dout;
    c.dout = Tensor::zeros(dout.shape(), kF64);
    all = c.backward();
    c.dout = Tensor();
    expect_close(c.backward().dk, values(all.dk), "without dout");
    c.dout = dout, c.dstate = Tensor::zeros(c.dstate.shape(), kF64);
    all = c.backward();
    c.dstate = Tensor();
    expect_close(c.backward().dk, values(all.dk), "without dstate");
  }
}

TEST_F(RecurrenceOnDevices, ADecayAboveZeroOrNotFiniteGivesNan) {
  for (float g : {0.5f, -INFINITY, NAN})
    for (int64_t T : {3, 12}) {
      RecurrenceCase c = on_gpu({.B = 1, .T = T, .G = 1, .H = 2, .K = 4, .V = 3}, Gate::token, false, kF32);
      c.in.log_decay.mutable_data<float>()[2] = g;  // of head 0 and token 1
      const Numbers out = values(c.forward().out), state = values(c.forward().state);
      for (size_t t = 0; t < static_cast<size_t>(T); ++t)
        for (size_t h = 0; h < 2; ++h) {
          const bool is_reached = h == 0 && t >= 1;
          EXPECT_EQ(std::isnan(out[(t * 2 + h) * 3]), is_reached) << t;
        }
      EXPECT_TRUE(std::isnan(state[0]));
      EXPECT_TRUE(std::isfinite(state[12]));
    }
}

TEST_F(RecurrenceOnDevices, DocumentsOfStatesAreThoseOfTheCpu) {
  const Tensor documents = Tensor::from<int32_t>({3, 4, -1, -1, -1, -1, 5, 5, 6}, {3, 3});
  for (const Tensor& before : {Tensor(), Tensor::from<int32_t>({1, 2, 9}, {3})}) {
    const Tensor want = ops::state_documents(documents, before);
    const Tensor got = ops::state_documents(ops::to(documents, Device::cuda()),
                                            before.defined() ? ops::to(before, Device::cuda()) : before);
    EXPECT_EQ(got.to_vector<int32_t>(), want.to_vector<int32_t>());
  }
}

TEST_F(RecurrenceOnDevices, ElementWiseScansEqualTheLoop) {
  for (DType dtype : {kF64, kF32, kBF16})
    for (bool is_per_channel : {false, true})
      for (Shape shape : {Shape{1, 1, 3}, Shape{2, 65, 5}, Shape{1, 130, 2}, Shape{2, 0, 4}, Shape{2, 3, 0}}) {
        const int64_t B = shape[0], T = shape[1], D = shape[2];
        const DType wide = dtype == kF64 ? kF64 : kF32;
        ops::DecayScanInput in{.x_BTD = random_normal(shape, "x", dtype),
                               .log_decay = mapped(is_per_channel ? Shape{D} : shape, "g", wide,
                                                   [](int64_t, double x) { return -0.3 * std::abs(x); }),
                               .state = random_normal({B, D}, "state", wide),
                               .documents = Tensor::empty({B, T}, kI32),
                               .state_document = Tensor::full({B}, 5, kI32)};
        for (int64_t i = 0; i < B * T; ++i)
          in.documents.mutable_data<int32_t>()[i] = i % 19 == 7 ? -1 : static_cast<int32_t>(5 + i % T * i / 300);
        const Tensor dy = random_normal(shape, "dy", dtype), dstate = random_normal({B, D}, "dstate", wide);
        auto run = [&](Device device, DType to) {
          auto there = [&](const Tensor& t) {
            return ops::to(is_floating(t.dtype()) && to == kF64 ? ops::cast(t, kF64) : t, device);
          };
          ops::DecayScanInput moved{there(in.x_BTD), there(in.log_decay), there(in.state), there(in.documents),
                                    there(in.state_document)};
          const ops::DecayScan y = ops::decay_scan(moved);
          const ops::DecayScanGrads grads = ops::decay_scan_backward(there(dy), there(dstate), moved);
          return std::vector<Tensor>{y.y, y.state, grads.dx, grads.dlog_decay, grads.dstate};
        };
        const std::vector<Tensor> got = run(Device::cuda(), dtype), want = run(Device::cpu(), kF64);
        for (size_t i = 0; i < want.size(); ++i)
          expect_close(got[i], values(want[i]), str(in.x_BTD, " ", in.log_decay, " result ", i),
                       got[i].dtype() == kF32 ? 1e-4 : 0);
      }
}

}  // namespace
}  // namespace weft::test
