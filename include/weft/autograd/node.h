// What a recorded function is made of: its inputs, the gradients that its backward returns, and the node that holds the
// closure. Written for record() (weft/autograd/record.h), which is what users call.
#pragma once

#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <new>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "weft/autograd/var.h"

namespace weft {

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
  Inputs(const V&... vars) : pointers_{&vars...}, count_(sizeof...(V)) {  // NOLINT
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
  virtual void drop_closure() = 0;  // frees what the closure kept
};

// Memory of a node with room for its edges and output gradients; nullptr-free. `outputs` gives shape and dtype of each output.
void* allocate_node(size_t object_bytes, const char* op, std::span<const Tensor> outputs, const Inputs& inputs);
void check_recorded(const char* op, std::span<const Tensor> outputs);  // anomaly mode
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
  union {
    F f_;
  };
  bool has_closure_;
};

template <class F>
Node* make_node(const char* op, std::span<const Tensor> outputs, const Inputs& inputs, F&& f) {
  using Closure = std::remove_cvref_t<F>;
  return ::new (allocate_node(sizeof(NodeOf<Closure>), op, outputs, inputs)) NodeOf<Closure>(std::forward<F>(f));
}

}  // namespace autograd

}  // namespace weft
