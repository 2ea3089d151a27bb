// How a differentiable function is made: compute the result on tensors, then record how gradients flow back.
//   Var softcap(const Var& x, double cap) {
//     Tensor y = ops::softcap(x.value(), cap);
//     return record("softcap", y, {x}, [y = Saved(y), cap](const Tensor& dy, Wants) {
//       return Grads{ops::softcap_backward(dy, y, cap)};
//     });
//   }
// What the closure captures is what backward keeps, nothing else. Never capture a Var. Capture tensors as Saved, so that a
// change in place before backward is an Error rather than a wrong gradient.
#pragma once

#include <array>
#include <concepts>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "weft/autograd/var.h"

namespace weft {

// A tensor kept for backward, with the version that it had.
class Saved {
 public:
  explicit Saved(const Tensor& tensor) : tensor_(tensor), version_(tensor.version()) {}
  operator const Tensor&() const { return get(); }              // NOLINT: reads like the tensor; Error if it was changed
  const Tensor& get() const;

 private:
  Tensor tensor_;
  uint64_t version_;
};

// Which inputs want a gradient.
class Wants {
 public:
  explicit Wants(uint64_t mask) : mask_(mask) {}
  bool operator[](size_t input) const { return input >= 64 || (mask_ >> input & 1u); }

 private:
  uint64_t mask_;
};

// Gradients of the inputs in order; undefined for those without.
class Grads {
 public:
  template <std::same_as<Tensor>... T>
  explicit(false) Grads(T... grads) : inline_{std::move(grads)...}, count_(sizeof...(T)) {
    static_assert(sizeof...(T) <= kInline, "pass a vector for more");
  }
  explicit Grads(std::vector<Tensor> grads) : many_(std::move(grads)), count_(many_.size()) {}
  size_t size() const { return count_; }
  Tensor& operator[](size_t i) { return many_.empty() ? inline_[i] : many_[i]; }

 private:
  static constexpr size_t kInline = 6;
  std::array<Tensor, kInline> inline_;
  std::vector<Tensor> many_;
  size_t count_;
};

// The inputs of a node, written {x, w} at the call.
class Inputs {
 public:
  template <std::same_as<Var>... V>
  Inputs(const V&... vars) : pointers_{&vars...}, count_(sizeof...(V)) {                // NOLINT
    static_assert(sizeof...(V) <= kInline, "pass a span for more");
  }
  explicit Inputs(std::span<const Var> vars) : many_(vars), count_(vars.size()) {}
  size_t size() const { return count_; }
  const Var& operator[](size_t i) const { return many_.empty() ? *pointers_[i] : many_[i]; }

 private:
  static constexpr size_t kInline = 6;
  std::array<const Var*, kInline> pointers_{};
  std::span<const Var> many_;
  size_t count_;
};

namespace autograd {

// A node: the recorded op, edges to what made its inputs, and (in a subclass) its closure. One block of pooled memory.
class Node {
 public:
  virtual ~Node() = default;
  virtual Grads run(std::span<const Tensor> dys, Wants wants) = 0;
  virtual void drop_closure() = 0;         // frees what the closure kept
};

// Memory of a node with room for its edges and output gradients; nullptr-free. `outputs` gives shape and dtype of each output.
void* allocate_node(size_t object_bytes, const char* op, std::span<const Tensor> outputs, const Inputs& inputs);
void check_recorded(const char* op, std::span<const Tensor> outputs);   // anomaly mode
bool wants_node(const Inputs& inputs);

template <class F>
class NodeOf final : public Node {
 public:
  explicit NodeOf(F f) : f_(std::move(f)), has_closure_(true) {}
  ~NodeOf() override { drop_closure(); }
  Grads run(std::span<const Tensor> dys, Wants wants) override {
    if constexpr (std::invocable<F&, const Tensor&, Wants>) return f_(dys[0], wants);
    else return f_(dys, wants);
  }
  void drop_closure() override {
    if (std::exchange(has_closure_, false)) f_.~F();
  }

 private:
  union { F f_; };
  bool has_closure_;
};

template <class F>
Node* make_node(const char* op, std::span<const Tensor> outputs, const Inputs& inputs, F&& f) {
  using Closure = std::remove_cvref_t<F>;
  return ::new (allocate_node(sizeof(NodeOf<Closure>), op, outputs, inputs)) NodeOf<Closure>(std::forward<F>(f));
}

}  // namespace autograd

// One output: `backward(const Tensor& dy, Wants) -> Grads`. A constant if no input wants a gradient or under NoGrad.
template <class F>
Var record(const char* op, Tensor value, const Inputs& inputs, F&& backward) {
  std::span<const Tensor> outputs(&value, 1);
  if (anomaly_mode()) autograd::check_recorded(op, outputs);
  if (!autograd::wants_node(inputs)) return Var(std::move(value));
  autograd::Node* node = autograd::make_node(op, outputs, inputs, std::forward<F>(backward));
  return Var(std::move(value), node, 0);
}

// Several outputs: `backward(std::span<const Tensor> dys, Wants) -> Grads`; dys[i] is undefined if nothing used output i.
template <size_t N, class F>
std::array<Var, N> record(const char* op, std::array<Tensor, N> values, const Inputs& inputs, F&& backward) {
  std::array<Var, N> vars;
  if (anomaly_mode()) autograd::check_recorded(op, values);
  autograd::Node* node = autograd::wants_node(inputs)
                             ? autograd::make_node(op, std::span<const Tensor>(values), inputs, std::forward<F>(backward))
                             : nullptr;
  for (size_t i = 0; i < N; ++i) {
    if (node && i > 0) autograd::retain(node);
    vars[i] = node ? Var(std::move(values[i]), node, static_cast<int>(i)) : Var(std::move(values[i]));
  }
  return vars;
}
template <class F>
std::vector<Var> record(const char* op, std::vector<Tensor> values, const Inputs& inputs, F&& backward) {
  std::vector<Var> vars;
  if (anomaly_mode()) autograd::check_recorded(op, values);
  autograd::Node* node = autograd::wants_node(inputs)
                             ? autograd::make_node(op, std::span<const Tensor>(values), inputs, std::forward<F>(backward))
                             : nullptr;
  for (size_t i = 0; i < values.size(); ++i) {
    if (node && i > 0) autograd::retain(node);
    vars.push_back(node ? Var(std::move(values[i]), node, static_cast<int>(i)) : Var(std::move(values[i])));
  }
  return vars;
}

}  // namespace weft
