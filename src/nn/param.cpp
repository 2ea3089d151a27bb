#include "weft/nn/param.h"

#include "weft/autograd/functions.h"
#include "weft/core/error.h"
#include "weft/nn/module.h"

namespace weft {

Param::Param(Tensor value) : master_(std::move(value)), leaf_(variable(master_, "parameter")) {
  WEFT_CHECK(master_.is_contiguous(), str("Param: ", master_, " is a strided view"), "give a row-major tensor");
  PartWatch::add(this, master_, "Param");
}

Param::~Param() { PartWatch::remove(this); }

Buffer::Buffer(Tensor value, double decay) : value_(std::move(value)), decay_(decay) {
  PartWatch::add(this, value_, "Buffer");
}

Buffer::~Buffer() { PartWatch::remove(this); }

void Param::set_value(const Tensor& value) {
  WEFT_CHECK(value.shape() == master_.shape(), str("Param: value ", value, " for ", master_), "keep the shape");
  assign(master_, value);
}

void Param::refresh_working() const {
  Tensor working = working_.tensor();
  assign(working, master_);
  WorkingCopy(working_).note(master_);
}

void Param::show() {
  leaf_.set_grad({});
  leaf_.set_value(working_.defined() ? working_.tensor() : master_);
  if (is_frozen()) frozen_ = leaf_.detach();
}

void Param::set_compute(DType compute) {
  WEFT_CHECK(compute == kF32 || compute == kBF16 || compute == kF64, str("set_compute: ", compute),
             "use f32, bf16 or f64");
  NoGrad no_grad;
  MemoryTag tag("parameters");
  DType master = compute == kF64 ? kF64 : kF32;
  if (master_.dtype() != master) master_ = cast(Var(master_), master).value();
  if (compute != kBF16 || master_.num_dims() < 2) working_ = {};
  else if (!working_.defined()) working_ = Tensor::empty(master_.shape(), kBF16, master_.device());
  if (working_.defined()) refresh_working();
  show();
}

void Param::to(Device device) {
  NoGrad no_grad;
  MemoryTag tag("parameters");
  master_ = weft::to(Var(master_), device).value();
  if (working_.defined() && working_.tensor().device() != device) {
    working_ = Tensor::empty(master_.shape(), kBF16, device);
    refresh_working();
  }
  show();
}

void Param::set_frozen(bool is_frozen) {
  frozen_ = is_frozen ? leaf_.detach() : Var();
  leaf_.set_grad({});
}

void Buffer::set_value(const Tensor& value) {
  WEFT_CHECK(value.shape() == value_.shape(), str("Buffer: value ", value, " for ", value_), "keep the shape");
  assign(value_, value);
}

void Buffer::add(const Tensor& sum, const Tensor& count) {
  WEFT_CHECK(sum.shape() == value_.shape(), str("Buffer: sum ", sum, " for ", value_),
             "add sums of the buffer's shape");
  WEFT_CHECK(count.num_elements() == 1, str("Buffer: count ", count), "give one number");
  auto collect = [](Tensor& all, const Tensor& part) {
    Tensor more = cast(Var(part), kF64).value();
    all = all.defined() ? weft::add(all, more).value() : more;
  };
  collect(sum_, sum);
  collect(count_, count.reshape({}));
}

void Buffer::reduce(const std::function<void(Tensor&)>& reduce) {
  if (!sum_.defined()) {
    sum_ = Tensor::zeros(value_.shape(), kF64, value_.device());
    count_ = Tensor::zeros({}, kF64, value_.device());
  }
  reduce(sum_);
  reduce(count_);
}

void Buffer::to(Device device) {
  for (Tensor* each : {&value_, &sum_, &count_})
    if (each->defined()) *each = weft::to(Var(*each), device).value();
}

void Buffer::update() {
  if (!sum_.defined()) return;
  auto number = [&](double x) { return Tensor::full({}, x, kF64, value_.device()); };
  Var before = cast(Var(value_), kF64), next = before * decay_ + Var(sum_) * (Var(number(1 - decay_)) / count_);
  assign(value_, where(equal(count_, number(0)), before, next).value());
  discard();
}

}  // namespace weft
