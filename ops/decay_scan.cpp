// The element-wise recurrence: checks, then kernels (ops/cpu/recurrence/decay_scan.cpp, ops/cuda/recurrence/decay_scan.cu).
#include "ops/cpu/recurrence/decay_scan.h"

#include "ops/cuda/recurrence/kernels.h"
#include "ops/recurrence_input.h"
#include "src/core/cuda_build.h"
#include "weft/ops/elementwise.h"
#include "weft/ops/recurrence.h"
#include "weft/ops/reduce.h"

namespace weft::ops {

namespace {

using core::Operand;

Tensor with_contiguous_channels(const Tensor& t) {
  return t.num_dims() == 1 || t.size(2) <= 1 || t.strides()[2] == 1 ? t : contiguous(t);
}

Operand operand(const Tensor& t) {
  Operand o{t.raw(), 0, 0, 1, t.dtype() == kBF16, static_cast<int64_t>(size_of(t.dtype()))};
  if (t.num_dims() == 3) o.batch_stride = t.strides()[0], o.token_stride = t.strides()[1];
  return o;
}

// A problem with everything checked, and what its pointers point to.
struct Call {
  cpu::DecayScanProblem p;
  Tensor x, log_decay, state, marks;
  DType wide;

  Call(std::string_view op, const DecayScanInput& in) {
    WEFT_CHECK(in.x_BTD.defined() && in.x_BTD.num_dims() == 3 && is_floating(in.x_BTD.dtype()),
               str(op, ": x is ", describe_input(in.x_BTD)), "pass x as f32, bf16 or f64 [B, T, D]");
    wide = in.x_BTD.dtype() == kF64 ? kF64 : kF32;
    p.batch = in.x_BTD.size(0), p.tokens = in.x_BTD.size(1), p.dim = in.x_BTD.size(2);
    const bool is_of_channels = in.log_decay.defined() && in.log_decay.num_dims() == 1;
    check_tensor(op, "log_decay", in.log_decay, is_of_channels ? Shape{p.dim} : in.x_BTD.shape(), wide, in.x_BTD);
    check_decay(op, in.log_decay);
    check_documents(op, in.documents, in.state_document, {p.batch, p.tokens}, in.x_BTD);
    if (in.state.defined()) {
      check_tensor(op, "state", in.state, {p.batch, p.dim}, wide, in.x_BTD);
      state = contiguous(in.state);
      p.state = state.raw();
    }
    x = with_contiguous_channels(in.x_BTD);
    log_decay = is_of_channels ? contiguous(in.log_decay) : with_contiguous_channels(in.log_decay);
    p.x = operand(x), p.log_decay = operand(log_decay);
    marks = marks_of(in.documents, in.state_document);
    if (marks.defined()) p.marks = static_cast<const cpu::Mark*>(marks.raw());
  }

  template <class F>
  void run(F&& f) const {
    if (p.batch * p.dim == 0) return;
    if (wide == kF64) f.template operator()<cpu::DecayScanKernels<cpu::Isa::baseline, double>>();
    else cpu::with_isa([&]<cpu::Isa I>() { f.template operator()<cpu::DecayScanKernels<I, float>>(); });
  }
};

Tensor new_output(const Shape& shape, DType dtype, Device device, Operand& to) {
  Tensor t = Tensor::empty(shape, dtype, device);
  t.mutable_raw();  // counts as written
  to = operand(t);
  return t;
}

}  // namespace

DecayScan decay_scan(const DecayScanInput& input) {
  Call call("decay_scan", input);
  DecayScan result;
  const Device device = input.x_BTD.device();
  result.y = new_output(input.x_BTD.shape(), input.x_BTD.dtype(), device, call.p.y);
  result.state = Tensor::empty({call.p.batch, call.p.dim}, call.wide, device);
  call.p.last_state = result.state.mutable_raw();
  if constexpr (kCuda) {
    if (device.is_cuda()) return cuda::decay_scan_forward(call.p, call.wide, device), result;
  }
  call.run([&]<class Kernels>() { Kernels::forward(call.p); });
  return result;
}

DecayScanGrads decay_scan_backward(const Tensor& dy_BTD, const Tensor& dstate, const DecayScanInput& input) {
  constexpr std::string_view op = "decay_scan_backward";
  Call call(op, input);
  cpu::DecayScanProblem& p = call.p;
  Tensor dy, dlast, of_rows;
  if (dy_BTD.defined()) {
    check_tensor(op, "dy", dy_BTD, input.x_BTD.shape(), input.x_BTD.dtype(), input.x_BTD);
    dy = with_contiguous_channels(dy_BTD);
    p.dy = operand(dy);
  }
  if (dstate.defined()) {
    check_tensor(op, "dstate", dstate, {p.batch, p.dim}, call.wide, input.x_BTD);
    dlast = contiguous(dstate);
    p.dlast_state = dlast.raw();
  }
  DecayScanGrads grads;
  const Device device = input.x_BTD.device();
  grads.dx = new_output(input.x_BTD.shape(), input.x_BTD.dtype(), device, p.dx);
  if (input.log_decay.num_dims() == 1 && device.is_cuda()) {
    of_rows = new_output(input.x_BTD.shape(), call.wide, device, p.dlog_decay);
  } else if (input.log_decay.num_dims() == 1) {
    of_rows = Tensor::zeros({p.batch, p.dim}, kF64, Device::cpu());
    p.dlog_decay_of_row = of_rows.mutable_data<double>();
  } else {
    grads.dlog_decay = new_output(input.log_decay.shape(), call.wide, device, p.dlog_decay);
  }
  if (input.state.defined()) {
    grads.dstate = Tensor::empty(input.state.shape(), call.wide, device);
    p.dstate = grads.dstate.mutable_raw();
  }
  if constexpr (kCuda) {
    if (device.is_cuda()) {
      cuda::decay_scan_backward(p, call.wide, device);
      if (of_rows.defined()) grads.dlog_decay = sum(sum(of_rows, 1), 0);
      return grads;
    }
  }
  call.run([&]<class Kernels>() { Kernels::backward(p); });
  if (of_rows.defined()) grads.dlog_decay = cast(sum(of_rows, 0), call.wide);
  return grads;
}

}  // namespace weft::ops
