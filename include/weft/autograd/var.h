// Var: a tensor that may stand on the tape. A Tensor becomes a constant Var implicitly; a Var gives its tensor only by value().
//   Var w = variable(Tensor::zeros({3}));
//   Var loss = sum_all(square(w - target));
//   backward(loss);                            // w.grad() is now d loss / d w
// The tape is the graph of nodes that Vars hold on to: it goes away with the last Var, and backward() frees what each node
// kept as soon as it has run.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <utility>

#include "weft/core/tensor.h"

namespace weft {

namespace autograd {
class Node;
void retain(Node* node);
void release(Node* node);
}  // namespace autograd

class Var;

// A hook on gradients, until remove(). Dropping this leaves the hook in place.
class GradHook {
 public:
  GradHook() = default;
  GradHook(const Var& of, uint64_t id);
  GradHook(GradHook&& other) noexcept : node_(std::exchange(other.node_, nullptr)), id_(other.id_) {}
  GradHook& operator=(GradHook other) noexcept {
    std::swap(node_, other.node_);
    id_ = other.id_;
    return *this;
  }
  ~GradHook();
  void remove();  // it is not called again; nothing if it was removed before

 private:
  autograd::Node* node_ = nullptr;
  uint64_t id_ = 0;
};

class Var {
 public:
  Var() = default;
  Var(const Tensor& value) : value_(value) {}        // NOLINT: a constant
  Var(Tensor&& value) : value_(std::move(value)) {}  // NOLINT
  Var(const Var& other) : value_(other.value_), node_(other.node_), output_(other.output_) {
    if (node_) autograd::retain(node_);
  }
  Var(Var&& other) noexcept
      : value_(std::move(other.value_)), node_(std::exchange(other.node_, nullptr)), output_(other.output_) {}
  Var& operator=(Var other) noexcept {
    value_ = std::move(other.value_);
    std::swap(node_, other.node_);
    output_ = other.output_;
    return *this;
  }
  ~Var() {
    if (node_) autograd::release(node_);
  }

  const Tensor& value() const { return value_; }
  bool defined() const { return value_.defined(); }
  const Shape& shape() const { return value_.shape(); }
  int num_dims() const { return value_.num_dims(); }
  int64_t size(int64_t dim) const { return value_.size(dim); }
  DType dtype() const { return value_.dtype(); }
  Device device() const { return value_.device(); }

  bool wants_grad() const { return node_ != nullptr; }
  Var detach() const { return Var(value_); }  // the same tensor as a constant

  // Of a Var made by variable(): the gradient collected so far, undefined before the first backward. f32 for bf16 values.
  const Tensor& grad() const;
  void set_grad(Tensor grad);  // an undefined tensor clears it
  // Replaces the tensor of a variable() between steps (casts, loading); shape must stay.
  void set_value(const Tensor& value);

  // Calls `hook` during each backward with the gradient of this Var, as soon as it is complete; the hook may replace it. Of a variable()
  // it is f32 (f64 for f64) and final for this backward: the last use of the variable has run, while other gradients are still to come.
  GradHook on_grad(std::function<void(Tensor&)> hook) const;
  // Of a variable(): in the backward that ends a step (BackwardOptions::ends_step), with the sum that grad() has then.
  GradHook on_step_grad(std::function<void(Tensor&)> hook) const;

  // For record(): a Var on the tape.
  Var(Tensor value, autograd::Node* node, int output) : value_(std::move(value)), node_(node), output_(output) {}
  autograd::Node* node() const { return node_; }
  int output() const { return output_; }

 private:
  Tensor value_;
  autograd::Node* node_ = nullptr;
  int output_ = 0;
};

inline const Shape& shape_of(const Var& x) { return x.shape(); }
std::string to_string(const Var& x);

// A leaf: gradients of it are collected. `name` appears in errors.
Var variable(const Tensor& value, std::string_view name = "variable");

struct BackwardOptions {
  bool keeps_graph = false;  // allow another backward through the same nodes
  bool ends_step = true;     // false for all micro-batches of a step but the last: see Var::on_step_grad
  // Variables whose hooks are called even if `root` does not depend on them, with zeros, before all others.
  std::span<const Var> leaves = {};
};
// Runs the tape from `root` back and adds to the grads of all leaves. Without `seed`, root must have one element. Gradients of a bf16
// value that has several uses are summed in f32 and rounded once. After an Error, leaves whose gradient was final keep it.
void backward(const Var& root, const Tensor& seed = {}, const BackwardOptions& options = {});

// No recording on this thread while one lives.
class NoGrad {
 public:
  NoGrad();
  ~NoGrad();
  NoGrad(const NoGrad&) = delete;
  NoGrad& operator=(const NoGrad&) = delete;

 private:
  bool outer_;
};
bool is_recording();

// Anomaly mode: every recorded output and every gradient is checked; the first non-finite value is an Error that names the forward
// op and the module. Slow.
void set_anomaly_mode(bool is_on);
bool anomaly_mode();

}  // namespace weft
