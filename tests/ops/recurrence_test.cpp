// The gated linear recurrence against float64 loops, and its gradients against differences of them.
#include "ops/cpu/recurrence/kernels.h"
#include "tests/ops/recurrence_case.h"

namespace weft::test {
namespace {

constexpr int64_t kChunk = 8;

INSTANTIATE_TEST_SUITE_P(OfCpu, RecurrenceEdges, testing::Values(Device::cpu()));

TEST(Recurrence, EqualsTheLoopAtEveryLength) {
  for_each_kind([](Gate gate, bool is_delta) {
    for (int64_t T : {int64_t{0}, int64_t{1}, int64_t{2}, kChunk - 1, kChunk, kChunk + 1, int64_t{65}})
      for (std::optional<int64_t> chunk :
           {std::optional<int64_t>(), std::optional(kChunk), std::optional<int64_t>(1)}) {
        RecurrenceCase c({.B = 2, .T = T, .G = 1, .H = 2, .K = 5, .V = 3}, gate, is_delta);
        c.options.chunk = chunk;
        c.expect_forward();
        c.use_state();
        c.expect_forward();
      }
  });
}

TEST(Recurrence, GradientsEqualDifferencesOfTheLoop) {
  for_each_kind([](Gate gate, bool is_delta) {
    for (int64_t T : {int64_t{1}, int64_t{2}, kChunk - 1, kChunk, kChunk + 1, int64_t{37}}) {
      RecurrenceCase c({.B = 2, .T = T, .G = 1, .H = 2, .K = 4, .V = 3}, gate, is_delta);
      c.options.chunk = kChunk;
      c.use_state();
      c.expect_gradients();
    }
  });
}

TEST(Recurrence, DocumentsAndMaskedWritesEqualTheLoop) {
  for_each_kind([](Gate gate, bool is_delta) {
    for (int64_t chunk : {int64_t{5}, int64_t{16}, int64_t{64}}) {
      RecurrenceCase c({.B = 2, .T = 65, .G = 2, .H = 4, .K = 3, .V = 2}, gate, is_delta);
      c.options.chunk = chunk;
      c.use_state(), c.use_documents(), c.use_writes();
      c.expect_forward();
      c.expect_gradients();
      c.in.state_document = Tensor::from<int32_t>({0, 7}, {2});  // of another document in the second row
      c.expect_forward();
      c.expect_gradients();
    }
  });
}

TEST(Recurrence, StrongDecayAndNoDecayEqualTheLoop) {
  for_each_kind([](Gate gate, bool is_delta) {
    for (double g : {-50.0, -5.0, 0.0}) {
      RecurrenceCase c({.B = 1, .T = 65, .G = 1, .H = 2, .K = 4, .V = 3}, gate, is_delta);
      if (!c.in.log_decay.defined()) return;
      c.in.log_decay = Tensor::full(c.in.log_decay.shape(), g, kF64);
      if (gate != Gate::head)  // among decays of another size
        for (int64_t i = 0; i < c.in.log_decay.num_elements(); i += 7) c.in.log_decay.mutable_data<double>()[i] = -0.25;
      c.options.chunk = 16;
      c.use_state();
      c.expect_forward();
      c.expect_gradients();
      RecurrenceCase narrow({.B = 1, .T = 65, .G = 1, .H = 2, .K = 4, .V = 3}, gate, is_delta, kF32);
      narrow.in.log_decay = ops::cast(c.in.log_decay, kF32);
      narrow.use_state();
      narrow.expect_forward();
      narrow.expect_gradients(2e-3);
    }
  });
}

TEST(Recurrence, DeltaRuleAtTheEdgesOfBetaAndWithRepeatedKeys) {
  for (Gate gate : {Gate::none, Gate::token, Gate::key})
    for (double beta : {0.0, 1.0, 1.9})
      for (DType dtype : {kF64, kF32}) {
        RecurrenceCase c({.B = 1, .T = 65, .G = 1, .H = 1, .K = 4, .V = 3}, gate, true, dtype, 0.01);
        c.in.beta = Tensor::full(c.in.beta.shape(), beta, c.in.beta.dtype());
        c.in.k_BTGK = mapped(c.in.k_BTGK.shape(), "one key", dtype, [](int64_t i, double x) {
          return 0.5 + 1e-4 * x * static_cast<double>(i % 2);  // of length 1
        });
        c.use_state();
        c.expect_forward(dtype == kF32 ? 2e-4 : 0);
        if (dtype == kF64) c.expect_gradients(1e-6);
      }
}

// f32 and bf16 at the widths and lengths of models, in every instruction set.
TEST(Recurrence, NarrowTypesAreNearTheLoop) {
  static constexpr RecurrenceSize kSize{.B = 1, .T = 130, .G = 1, .H = 4, .K = 40, .V = 33};
  for_each_isa([] {
    for_each_kind([](Gate gate, bool is_delta) {
      for (DType dtype : {kF32, kBF16}) {
        RecurrenceCase c(kSize, gate, is_delta, dtype, 0.1);
        c.use_state(), c.use_documents();
        c.expect_forward(dtype == kF32 ? 1e-5 : 0);
        RecurrenceCase wide(kSize, gate, is_delta, kF64, 0.1);
        wide.in = {.q_BTGK = ops::cast(c.in.q_BTGK, kF64),
                   .k_BTGK = ops::cast(c.in.k_BTGK, kF64),
                   .v_BTHV = ops::cast(c.in.v_BTHV, kF64),
                   .log_decay = c.in.log_decay.defined() ? ops::cast(c.in.log_decay, kF64) : Tensor(),
                   .beta = c.in.beta.defined() ? ops::cast(c.in.beta, kF64) : Tensor(),
                   .state = ops::cast(c.in.state, kF64),
                   .documents = c.in.documents};
        ops::RecurrenceGrads got = ops::recur_backward(c.dout, c.dstate, c.in, c.options);
        ops::RecurrenceGrads want =
            ops::recur_backward(ops::cast(c.dout, kF64), ops::cast(c.dstate, kF64), wide.in, wide.options);
        const double allowed = dtype == kF32 ? 5e-5 : 0;
        expect_close(got.dq, values(want.dq), c.name() + " dq", allowed);
        expect_close(got.dk, values(want.dk), c.name() + " dk", allowed);
        expect_close(got.dv, values(want.dv), c.name() + " dv", allowed);
        if (want.dlog_decay.defined()) expect_close(got.dlog_decay, values(want.dlog_decay), c.name() + " dg", 2e-4);
        if (want.dbeta.defined()) expect_close(got.dbeta, values(want.dbeta), c.name() + " dbeta", 1e-4);
        expect_close(got.dstate, values(want.dstate), c.name() + " dstate", 1e-4);
      }
    });
  });
}

TEST(Recurrence, ReadsStridedTensorsAndSharesKeysInGroups) {
  RecurrenceCase c({.B = 2, .T = 19, .G = 2, .H = 6, .K = 4, .V = 5}, Gate::token, true);
  c.use_state();
  c.expect_forward();
  c.expect_gradients();
  ops::Recurrence want = ops::recur(c.in, c.options);
  ops::RecurrenceGrads grads = ops::recur_backward(c.dout, c.dstate, c.in, c.options);
  for (Tensor* t : {&c.in.q_BTGK, &c.in.k_BTGK, &c.in.v_BTHV, &c.dout})
    *t = ops::contiguous(t->permute({3, 1, 2, 0})).permute({3, 1, 2, 0});
  for (Tensor* t : {&c.in.log_decay, &c.in.beta}) *t = ops::contiguous(t->transpose(0, 2)).transpose(0, 2);
  for (Tensor* t : {&c.in.state, &c.dstate}) *t = ops::contiguous(t->transpose(1, 3)).transpose(1, 3);
  ops::Recurrence got = ops::recur(c.in, c.options);
  expect_close(got.out, values(want.out), "out of strided tensors");
  expect_close(got.state, values(want.state), "state of strided tensors");
  ops::RecurrenceGrads strided = ops::recur_backward(c.dout, c.dstate, c.in, c.options);
  expect_close(strided.dk, values(grads.dk), "dk of strided tensors");
  expect_close(strided.dlog_decay, values(grads.dlog_decay), "dg of strided tensors");
}

TEST(Recurrence, RepeatsBitForBitWithAnyThreadCount) {
  for_each_kind([](Gate gate, bool is_delta) {
    for (const RecurrenceSize& size : {RecurrenceSize{.B = 2, .T = 150, .G = 1, .H = 4, .K = 16, .V = 24},
                                       RecurrenceSize{.B = 1, .T = 70, .G = 1, .H = 14, .K = 8, .V = 8},
                                       RecurrenceSize{.B = 1, .T = 70, .G = 1, .H = 5, .K = 8, .V = 8}}) {
      RecurrenceCase c(size, gate, is_delta, kF32);
      expect_same_for_all_threads([&]() -> std::vector<Tensor> {
        ops::Recurrence y = ops::recur(c.in, c.options);
        ops::RecurrenceGrads grads = ops::recur_backward(c.dout, c.dstate, c.in, c.options);
        std::vector<Tensor> all = {y.out, y.state, grads.dq, grads.dk, grads.dv};
        if (grads.dlog_decay.defined()) all.push_back(grads.dlog_decay);
        if (grads.dbeta.defined()) all.push_back(grads.dbeta);
        return all;
      });
    }
  });
}

// All value heads have one key head: threads share them, and dq and dk are sums of what some heads each gave.
TEST(Recurrence, HeadsOfOneGroupEqualTheLoop) {
  const int before = num_threads();
  set_num_threads(4);
  for_each_kind([](Gate gate, bool is_delta) {
    for (const RecurrenceSize& size : {RecurrenceSize{.B = 2, .T = 70, .G = 1, .H = 3, .K = 3, .V = 4},
                                       RecurrenceSize{.B = 1, .T = 70, .G = 2, .H = 8, .K = 3, .V = 4},
                                       RecurrenceSize{.B = 1, .T = 70, .G = 1, .H = 6, .K = 3, .V = 70}}) {
      RecurrenceCase c(size, gate, is_delta);
      c.use_state(), c.use_documents(), c.use_writes();
      c.expect_forward();
      c.expect_gradients(2e-7, 25);
      expect_close(ops::recur_state_gradient(c.dout, c.dstate, c.in, c.options),
                   values(ops::recur_backward(c.dout, c.dstate, c.in, c.options).dstate), c.name() + " dstate alone");
    }
  });
  set_num_threads(before);
}

TEST(Recurrence, ThreadsShareTheHeadsOfAGroup) {
  const int before = num_threads();
  set_num_threads(4);
  cpu::RecurrenceProblem p;
  p.batch = 1, p.tokens = 256, p.heads = 24, p.key_heads = 1, p.key_width = 16;
  p.value_width = p.part_width = p.state_width = 16;
  using Kernels = cpu::RecurrenceKernels<cpu::Isa::baseline, double>;
  EXPECT_GE(Kernels::forward_items(p), 4);
  EXPECT_EQ(Kernels::workers(p).count, 1) << "one sum of all heads";
  const int64_t of_all = Kernels::workers(p).states;
  p.sums_per_group = 12;
  EXPECT_EQ(Kernels::workers(p).count, 4);
  EXPECT_EQ(Kernels::workers(p).states, of_all / 12);
  set_num_threads(before);
}

// With fewer heads than threads a head is computed in parts of its value columns.
TEST(Recurrence, PartsOfAHeadEqualTheLoop) {
  const int before = num_threads();
  set_num_threads(3);
  for_each_kind([](Gate gate, bool is_delta) {
    for (DType dtype : {kF64, kBF16}) {
      RecurrenceCase c({.B = 1, .T = 66, .G = 1, .H = 2, .K = 3, .V = 70}, gate, is_delta, dtype);
      c.use_state(), c.use_documents(), c.use_writes();
      c.expect_forward();
      if (dtype == kF64) c.expect_gradients(2e-7, 25);
      if (dtype == kBF16)
        expect_close(
            ops::recur_backward(c.dout, c.dstate, c.in, c.options).dk,
            [&] {
              set_num_threads(1);
              Numbers alone = values(ops::recur_backward(c.dout, c.dstate, c.in, c.options).dk);
              set_num_threads(3);
              return alone;
            }(),
            c.name() + " dk");
    }
  });
  set_num_threads(before);
}

TEST(Recurrence, GivesOnlyTheGradientsThatAreWanted) {
  for_each_kind([](Gate gate, bool is_delta) {
    RecurrenceCase c({.B = 1, .T = 20, .G = 1, .H = 2, .K = 4, .V = 3}, gate, is_delta);
    c.use_state();
    ops::RecurrenceGrads all = ops::recur_backward(c.dout, c.dstate, c.in, c.options);
    const Tensor* want[] = {&all.dq, &all.dk, &all.dv, &all.dlog_decay, &all.dbeta, &all.dstate};
    for (int i = 0; i < 6; ++i) {
      ops::RecurrenceWants wants{i == 0, i == 1, i == 2, i == 3, i == 4, i == 5};
      ops::RecurrenceGrads one = ops::recur_backward(c.dout, c.dstate, c.in, c.options, wants);
      const Tensor* found[] = {&one.dq, &one.dk, &one.dv, &one.dlog_decay, &one.dbeta, &one.dstate};
      for (int j = 0; j < 6; ++j) {
        ASSERT_EQ(found[j]->defined(), i == j && want[j]->defined()) << c.name() << " gradient " << j;
        if (found[j]->defined()) expect_close(*found[j], values(*want[j]), str(c.name(), " gradient ", i));
      }
    }
  });
}

TEST(Recurrence, AnUndefinedGradientOfAnOutputCountsAsZeros) {
  RecurrenceCase c({.B = 1, .T = 20, .G = 1, .H = 2, .K = 4, .V = 3}, Gate::key, true);
  const Tensor zeros = Tensor::zeros({1, 2, 4, 3}, kF64);
  ops::RecurrenceGrads want = ops::recur_backward(c.dout, zeros, c.in, c.options);
  expect_close(ops::recur_backward(c.dout, {}, c.in, c.options).dk, values(want.dk), "without dstate");
  want = ops::recur_backward(Tensor::zeros(c.dout.shape(), kF64), c.dstate, c.in, c.options);
  expect_close(ops::recur_backward({}, c.dstate, c.in, c.options).dk, values(want.dk), "without dout");
}

}  // namespace
}  // namespace weft::test
