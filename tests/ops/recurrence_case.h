// Inputs of the recurrence of every kind, what the reference makes of them, and differences of the reference.
#pragma once

#include <algorithm>
#include <cmath>

#include "tests/ops/row_check.h"
#include "tests/reference/recurrence.h"
#include "weft/core/stream.h"
#include "weft/ops/elementwise.h"
#include "weft/ops/recurrence.h"

namespace weft::test {

enum class Gate { none, head, token, key, value };
inline const char* to_string(Gate gate) {
  constexpr const char* names[] = {"no decay", "decay per head", "decay per token", "decay per key channel",
                                   "decay per value channel"};
  return names[static_cast<int>(gate)];
}

inline std::vector<int64_t> integers(const Tensor& t) {
  std::vector<int64_t> out;
  if (t.defined())
    for (int32_t x : t.to_vector<int32_t>()) out.push_back(x);
  return out;
}
inline Numbers numbers_or_none(const Tensor& t) { return t.defined() ? values(t) : Numbers(); }

// Values f(i, x) of the normal numbers x, in `dtype`.
inline Tensor mapped(const Shape& shape, std::string_view name, DType dtype,
                     const std::function<double(int64_t, double)>& f) {
  Numbers x = values(random_normal(shape, name));
  for (size_t i = 0; i < x.size(); ++i) x[i] = f(static_cast<int64_t>(i), x[i]);
  return reference::make(shape, x, dtype);
}

struct RecurrenceSize {
  int64_t B = 1, T = 1, G = 1, H = 1, K = 1, V = 1;
};

struct RecurrenceCase {
  RecurrenceSize size;
  Gate gate;
  bool is_delta;
  ops::RecurrenceInput in;
  ops::RecurrenceOptions options;
  Tensor dout, dstate;
  Device device = Device::cpu();  // where it is computed

  // decay: size of the logarithms of decays.
  RecurrenceCase(const RecurrenceSize& s, Gate gate_, bool is_delta_, DType dtype = kF64, double decay = 0.3)
      : size(s), gate(gate_), is_delta(is_delta_) {
    const DType wide = dtype == kF64 ? kF64 : kF32;
    const double width = 1 / std::sqrt(static_cast<double>(s.K));
    in.q_BTGK = random_normal({s.B, s.T, s.G, s.K}, "q", dtype);
    in.k_BTGK = mapped({s.B, s.T, s.G, s.K}, "k", dtype, [&](int64_t, double x) { return width * std::tanh(x); });
    in.v_BTHV = random_normal({s.B, s.T, s.H, s.V}, "v", dtype);
    auto gates = [&](const Shape& shape) {
      return mapped(shape, "g", wide, [&](int64_t, double x) { return -decay * std::abs(x); });
    };
    if (gate == Gate::head) in.log_decay = gates({s.H});
    if (gate == Gate::token) in.log_decay = gates({s.B, s.T, s.H});
    if (gate == Gate::key) in.log_decay = gates({s.B, s.T, s.H, s.K});
    if (gate == Gate::value) in.log_decay = gates({s.B, s.T, s.H, s.V});
    if (is_delta)
      in.beta = mapped({s.B, s.T, s.H}, "beta", wide, [](int64_t, double x) { return 1 / (1 + std::exp(-x)); });
    options = {.scale = 0.7, .side = gate == Gate::value ? ops::DecaySide::value : ops::DecaySide::key};
    dout = random_normal({s.B, s.T, s.H, s.V}, "dout", dtype);
    dstate = random_normal({s.B, s.H, s.K, s.V}, "dstate", wide);
  }
  void use_state() {
    in.state = random_normal({size.B, size.H, size.K, size.V}, "state", in.v_BTHV.dtype() == kF64 ? kF64 : kF32);
  }
  void use_writes() {
    in.writes = Tensor::empty({size.B, size.T, size.H}, kBool);
    for (int64_t i = 0; i < in.writes.num_elements(); ++i) in.writes.mutable_data<bool>()[i] = i % 3 != 1;
  }
  // Ragged documents, the same in no two rows, with padding between and behind them.
  void use_documents() {
    in.documents = Tensor::empty({size.B, size.T}, kI32);
    for (int64_t b = 0; b < size.B; ++b)
      for (int64_t t = 0; t < size.T; ++t) {
        const int64_t i = t + 5 * b;
        const bool is_padding = i % 23 == 11 || t >= size.T - b;
        in.documents.mutable_data<int32_t>()[b * size.T + t] = is_padding ? -1 : static_cast<int32_t>(i * i / 150);
      }
  }

  reference::Recurrence reference() const {
    reference::Recurrence r{.B = size.B, .T = size.T, .G = size.G, .H = size.H, .K = size.K, .V = size.V};
    r.scale = options.scale, r.is_of_values = gate == Gate::value;
    r.q = values(in.q_BTGK), r.k = values(in.k_BTGK), r.v = values(in.v_BTHV);
    r.log_decay = numbers_or_none(in.log_decay), r.beta = numbers_or_none(in.beta);
    r.decay_dims = in.log_decay.defined() ? in.log_decay.num_dims() : 0;
    if (in.writes.defined())
      for (double x : values(in.writes)) r.writes.push_back(x != 0);
    r.state = numbers_or_none(in.state);
    r.documents = integers(in.documents), r.state_document = integers(in.state_document);
    return r;
  }
  std::string name() const {
    return str(to_string(gate), is_delta ? " delta" : "", " T ", size.T, " chunk ", options.chunk.value_or(0), " ",
               in.v_BTHV.dtype());
  }
  Tensor there(const Tensor& t) const { return t.defined() ? ops::to(t, device) : t; }
  ops::RecurrenceInput there() const {
    return {there(in.q_BTGK), there(in.k_BTGK), there(in.v_BTHV),    there(in.log_decay),     there(in.beta),
            there(in.writes), there(in.state),  there(in.documents), there(in.state_document)};
  }
  ops::Recurrence forward() const { return ops::recur(there(), options); }
  ops::RecurrenceGrads backward(const ops::RecurrenceWants& wants = {}) const {
    return ops::recur_backward(there(dout), there(dstate), there(), options, wants);
  }

  void expect_forward(double allowed = 0) const {
    reference::Recurrence want = reference();
    want.run();
    ops::Recurrence got = forward();
    expect_close(got.out, want.out, name() + " out", allowed);
    expect_close(got.state, want.last_state, name() + " state", allowed);
  }

  // The gradients of sum(out dout) + sum(state dstate) against central differences of the reference, at up to `most` elements of each input.
  void expect_gradients(double allowed = 2e-7, size_t most = 60) const {
    ops::RecurrenceGrads got = backward();
    reference::Recurrence r = reference();
    const Numbers of_out = values(dout), of_state = values(dstate);
    auto loss = [&] {
      r.run();
      double sum = 0;
      for (size_t i = 0; i < of_out.size(); ++i) sum += r.out[i] * of_out[i];
      for (size_t i = 0; i < of_state.size(); ++i) sum += r.last_state[i] * of_state[i];
      return sum;
    };
    auto check = [&](const char* what, const Tensor& grad, Numbers& input) {
      ASSERT_EQ(grad.defined(), !input.empty()) << name() << " d" << what;
      if (input.empty()) return;
      const Numbers found = values(grad);
      ASSERT_EQ(found.size(), input.size());
      const size_t step = std::max<size_t>(1, input.size() / most);
      for (size_t i = 0; i < input.size(); i += step) {
        const double at = input[i], h = 1e-5;
        input[i] = at + h;
        const double above = loss();
        input[i] = at - h;
        const double want = (above - loss()) / (2 * h);
        input[i] = at;
        ASSERT_TRUE(std::abs(found[i] - want) <= allowed * (1 + std::abs(want)))
            << name() << " d" << what << "[" << i << "] is " << found[i] << ", differences give " << want;
      }
    };
    check("q", got.dq, r.q), check("k", got.dk, r.k), check("v", got.dv, r.v);
    check("log_decay", got.dlog_decay, r.log_decay), check("beta", got.dbeta, r.beta);
    check("state", got.dstate, r.state);
  }
};

// The edge cases, of one device: recurrence_test runs them on the CPU, recurrence_device_test on the GPU.
class RecurrenceEdges : public testing::TestWithParam<Device> {
 protected:
  void SetUp() override {
    if (device().is_cuda() && num_cuda_devices() == 0) GTEST_SKIP() << "no GPU: " << cuda_problem();
  }
  static Device device() { return GetParam(); }
  static Tensor there(const Tensor& t) { return ops::to(t, device()); }
  static Tensor full(const Shape& shape, double x, DType dtype) { return Tensor::full(shape, x, dtype, device()); }
  static RecurrenceCase make_case(const RecurrenceSize& size, Gate gate, bool is_delta, DType dtype = kF64,
                                  double decay = 0.3) {
    RecurrenceCase c(size, gate, is_delta, dtype, decay);
    c.device = device();
    return c;
  }
};

// Every kind of decay, plain and delta.
template <class F>
void for_each_kind(F&& f) {
  for (Gate gate : {Gate::none, Gate::head, Gate::token, Gate::key, Gate::value})
    for (bool is_delta : {false, true})
      if (gate != Gate::value || !is_delta) f(gate, is_delta);
}

}  // namespace weft::test
