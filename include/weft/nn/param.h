// What a module holds: parameters, which are trained, and buffers, which are running means.
#pragma once

#include <functional>

#include "weft/autograd/var.h"
#include "weft/core/working_copy.h"

namespace weft {

// A trained tensor. Its master value is f32 (f64 in gradient checks). Under bf16 compute a matrix has a bf16 working copy too: forward
// reads it, and each step of Optimizer writes it. It cannot be out of date: if something else wrote the master, the next forward makes the
// copy anew. Gradients are f32.
class Param {
 public:
  explicit Param(Tensor value);
  ~Param();
  Param(const Param&) = delete;
  Param& operator=(const Param&) = delete;

  operator const Var&() const {  // NOLINT: what forward reads
    if (working_.defined() && !working_.is_of(master_)) refresh_working();
    return frozen_.defined() ? frozen_ : leaf_;
  }
  const Tensor& value() const { return master_; }
  const WorkingCopy& working() const { return working_; }  // undefined unless compute is bf16 and this is a matrix
  const Tensor& grad() const { return leaf_.grad(); }
  void clear_grad() { leaf_.set_grad({}); }
  void set_value(const Tensor& value);  // copies `value` (converted) into the master
  void set_compute(DType compute);      // f32, bf16, or f64 (which converts the master); the gradient is cleared
  void to(Device device);               // the gradient is cleared
  // What is frozen is a constant to forward: it has no gradient, and optimizer_params() leaves it out. It is saved and loaded as ever.
  void set_frozen(bool is_frozen);
  bool is_frozen() const { return frozen_.defined(); }
  Var& var() { return leaf_; }

 private:
  void refresh_working() const;
  void show();  // master or working copy to forward

  Tensor master_;
  WorkingCopy working_;
  Var leaf_;
  Var frozen_;  // the leaf's tensor as a constant, if this is frozen
};

// A running mean over optimiser steps. It is f32, has no gradient, and is named and saved like a Param. Forward reads the value of the last
// step and adds sums and counts (Tokens::accumulate). After the last micro-batch, update() sets value = decay value + (1 - decay) sum /
// count.
class Buffer {
 public:
  explicit Buffer(Tensor value, double decay = 0.9);
  ~Buffer();
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  const Tensor& value() const { return value_; }
  void set_value(const Tensor& value);  // converted

  // `sum` has the value's shape, `count` is one number: on the device, so that nobody waits for it.
  void add(const Tensor& sum, const Tensor& count);
  void update();                              // does nothing if no count above 0 was added
  void discard() { sum_ = {}, count_ = {}; }  // drops the sums of a step that was skipped
  // Sum and count, zeros if nothing was added, go through `reduce`: before update(), to be summed over ranks.
  void reduce(const std::function<void(Tensor&)>& reduce);
  void to(Device device);  // with what was added

 private:
  Tensor value_, sum_, count_;  // the last two f64
  double decay_;
};

}  // namespace weft
