// The element-wise recurrence against float64 loops, and its gradients against differences of them.
#include "tests/ops/recurrence_case.h"

namespace weft::test {
namespace {

struct ScanCase {
  ops::DecayScanInput in;
  Tensor dy, dstate;

  ScanCase(const Shape& shape, bool is_per_channel, DType dtype = kF64, double decay = 0.3) {
    const DType wide = dtype == kF64 ? kF64 : kF32;
    in.x_BTD = random_normal(shape, "x", dtype);
    in.log_decay = mapped(is_per_channel ? Shape{shape[2]} : shape, "g", wide,
                          [&](int64_t, double x) { return -decay * std::abs(x); });
    dy = random_normal(shape, "dy", dtype), dstate = random_normal({shape[0], shape[2]}, "dstate", wide);
  }
  void use_state() { in.state = random_normal(dstate.shape(), "state", dstate.dtype()); }
  void use_documents() {
    const int64_t T = in.x_BTD.size(1);
    in.documents = Tensor::empty({in.x_BTD.size(0), T}, kI32);
    for (int64_t i = 0; i < in.documents.num_elements(); ++i)
      in.documents.mutable_data<int32_t>()[i] = i % 19 == 7 ? -1 : static_cast<int32_t>(i % T * i / 300);
  }
  reference::DecayScan reference() const {
    return {.B = in.x_BTD.size(0),
            .T = in.x_BTD.size(1),
            .D = in.x_BTD.size(2),
            .x = values(in.x_BTD),
            .log_decay = values(in.log_decay),
            .state = numbers_or_none(in.state),
            .is_per_channel = in.log_decay.num_dims() == 1,
            .documents = integers(in.documents),
            .state_document = integers(in.state_document)};
  }
  std::string name() const { return str(in.x_BTD, " ", in.log_decay); }
  void expect_forward() const {
    reference::DecayScan want = reference();
    want.run();
    ops::DecayScan got = ops::decay_scan(in);
    expect_close(got.y, want.y, name() + " y");
    expect_close(got.state, want.last_state, name() + " state");
  }
  void expect_gradients(double allowed = 1e-7) const {
    ops::DecayScanGrads got = ops::decay_scan_backward(dy, dstate, in);
    reference::DecayScan r = reference();
    const Numbers of_y = values(dy), of_state = values(dstate);
    auto loss = [&] {
      r.run();
      double sum = 0;
      for (size_t i = 0; i < of_y.size(); ++i) sum += r.y[i] * of_y[i];
      for (size_t i = 0; i < of_state.size(); ++i) sum += r.last_state[i] * of_state[i];
      return sum;
    };
    auto check = [&](const char* what, const Tensor& grad, Numbers& input) {
      ASSERT_EQ(grad.defined(), !input.empty()) << name() << what;
      const Numbers found = numbers_or_none(grad);
      for (size_t i = 0; i < input.size(); i += 1 + input.size() / 50) {
        const double at = input[i], h = 1e-5;
        input[i] = at + h;
        const double above = loss();
        input[i] = at - h;
        const double want = (above - loss()) / (2 * h);
        input[i] = at;
        ASSERT_NEAR(found[i], want, allowed * (1 + std::abs(want))) << name() << what << i;
      }
    };
    check(" dx ", got.dx, r.x), check(" dlog_decay ", got.dlog_decay, r.log_decay);
    check(" dstate ", got.dstate, r.state);
  }
};

TEST(DecayScan, EqualsTheLoopAndItsDifferences) {
  for (bool is_per_channel : {false, true})
    for (Shape shape : {Shape{2, 1, 3}, Shape{1, 2, 1}, Shape{2, 33, 5}, Shape{1, 257, 2}, Shape{2, 9, 65}}) {
      ScanCase c(shape, is_per_channel);
      c.expect_forward();
      c.use_state();
      c.expect_forward(), c.expect_gradients();
      c.use_documents();
      c.expect_forward(), c.expect_gradients();
      c.in.state_document = Tensor::full({shape[0]}, 5, kI32);
      c.expect_forward(), c.expect_gradients();
    }
}

TEST(DecayScan, NarrowTypesAreNearTheLoop) {
  for_each_isa([] {
    for (DType dtype : {kF32, kBF16, kF64})
      for (Shape shape :
           {Shape{2, 0, 4}, Shape{0, 3, 4}, Shape{2, 3, 0}, Shape{2, 600, 63}, Shape{1, 256, 64}, Shape{1, 255, 130}})
        for (double decay : {0.05, 50.0}) {
          ScanCase c(shape, false, dtype, decay);
          c.use_state();
          c.expect_forward();
          ops::DecayScanGrads got = ops::decay_scan_backward(c.dy, c.dstate, c.in);
          auto wide = [](const Tensor& t) { return ops::cast(t, kF64); };
          ops::DecayScanGrads want = ops::decay_scan_backward(
              wide(c.dy), wide(c.dstate),
              {.x_BTD = wide(c.in.x_BTD), .log_decay = wide(c.in.log_decay), .state = wide(c.in.state)});
          expect_close(got.dx, values(want.dx), c.name() + " dx");
          expect_close(got.dlog_decay, values(want.dlog_decay), c.name() + " dlog_decay", dtype == kF64 ? 0 : 1e-4);
          expect_close(got.dstate, values(want.dstate), c.name() + " dstate");
        }
  });
}

// The core with one key, one value and as many heads as channels.
TEST(DecayScan, EqualsTheCoreOfWidthOne) {
  ScanCase c({2, 41, 6}, false);
  c.use_state(), c.use_documents();
  Tensor ones = Tensor::full({2, 41, 1, 1}, 1, kF64);
  ops::Recurrence core = ops::recur({.q_BTGK = ones,
                                     .k_BTGK = ones,
                                     .v_BTHV = c.in.x_BTD.unsqueeze(3),
                                     .log_decay = c.in.log_decay,
                                     .state = c.in.state.reshape({2, 6, 1, 1}),
                                     .documents = c.in.documents});
  ops::DecayScan scan = ops::decay_scan(c.in);
  expect_close(scan.y, values(core.out), "y");
  expect_close(scan.state, values(core.state), "state");
}

TEST(DecayScan, ReadsStridedTensorsAndRepeatsBitForBit) {
  ScanCase c({2, 300, 70}, false, kF32);
  c.use_state();
  ScanCase strided = c;
  for (Tensor* t : {&strided.in.x_BTD, &strided.in.log_decay, &strided.dy})
    *t = ops::contiguous(t->permute({2, 1, 0})).permute({2, 1, 0});
  auto all = [](const ScanCase& s) -> std::vector<Tensor> {
    ops::DecayScan y = ops::decay_scan(s.in);
    ops::DecayScanGrads grads = ops::decay_scan_backward(s.dy, s.dstate, s.in);
    return {y.y, y.state, grads.dx, grads.dlog_decay, grads.dstate};
  };
  expect_same_for_all_threads([&] { return all(c); });
  std::vector<Tensor> want = all(c), got = all(strided);
  for (size_t i = 0; i < want.size(); ++i) expect_close(got[i], values(want[i]), str("strided ", i));
}

TEST(DecayScan, SaysWhatIsWrong) {
  ScanCase c({2, 5, 3}, false, kF32);
  auto with = [&](auto change) {
    return [&, change] {
      ops::DecayScanInput in = c.in;
      change(in);
      ops::decay_scan(in);
    };
  };
  expect_errors({
      {with([](auto& in) {
         in.x_BTD = Tensor::zeros({2, 5});
       }),
       {"decay_scan: x is [2, 5]", "[B, T, D]"}},
      {with([](auto& in) { in.log_decay = Tensor(); }), {"log_decay is undefined"}},
      {with([](auto& in) {
         in.log_decay = Tensor::zeros({2, 5, 4});
       }),
       {"log_decay is [2, 5, 4]", "[2, 5, 3]"}},
      {with([](auto& in) { in.log_decay = Tensor::full({3}, 1); }), {"has an element 1, above 0"}},
      {with([](auto& in) { in.log_decay = Tensor::full({3}, -INFINITY); }), {"not finite", "floor"}},
      {with([](auto& in) {
         in.state = Tensor::zeros({2, 4});
       }),
       {"state is [2, 4]", "[2, 3]"}},
      {with([](auto& in) {
         in.documents = Tensor::zeros({2, 4}, kI32);
       }),
       {"documents is [2, 4]"}},
      {[&] {
         ops::decay_scan_backward(Tensor::zeros({2, 5, 2}), {}, c.in);
       },
       {"dy is [2, 5, 2]"}},
  });
}

}  // namespace
}  // namespace weft::test
