// backward(): visits nodes from the newest to the oldest, so every node has all its gradients when its closure runs.
#include <algorithm>
#include <array>

#include "autograd/internal/node_header.h"
#include "weft/core/error.h"
#include "weft/core/scope.h"
#include "weft/ops/elementwise.h"
#include "weft/ops/reduce.h"

namespace weft {

namespace {

using autograd::Edge;
using autograd::header;
using autograd::Leaf;
using autograd::Node;
using autograd::NodeHeader;
using autograd::Output;

thread_local bool recording = true;
thread_local bool checks_anomalies = false;

std::string name_of(const NodeHeader& h) {
  return h.path && !h.path->empty() ? str(h.op, " in ", *h.path) : std::string(h.op);
}

bool older(const Node* a, const Node* b) {
  return header(const_cast<Node*>(a)).sequence < header(const_cast<Node*>(b)).sequence;
}

// Adds `grad` to `sum`, in place where nobody else holds the memory.
void collect(Tensor& sum, Tensor grad) {
  if (!sum.defined()) sum = std::move(grad);
  else if (sum.is_unshared() && sum.is_contiguous()) ops::add_(sum, grad);
  else sum = ops::add(sum, sum.dtype() == grad.dtype() ? grad : ops::cast(grad, sum.dtype()));
}

class Backward {
 public:
  explicit Backward(BackwardOptions options) : options_(options) {}

  void add_root(const Var& root, const Tensor& seed) { give(root.node(), root.output(), seed); }

  void run() {
    while (!queue_.empty()) {
      std::pop_heap(queue_.begin(), queue_.end(), older);
      Node* node = queue_.back();
      queue_.pop_back();
      Held held{node};
      NodeHeader& h = header(node);
      h.is_queued = false;
      if (h.hooks) call_hooks(h);
      if (h.is_leaf) finish_leaf(static_cast<Leaf&>(*node), h);
      else visit(node, h);
    }
  }

  // After an Error: gradients half way are dropped so that the next backward starts clean.
  void abandon() {
    for (Node* node : queue_) {
      header(node).is_queued = false;
      Held{node};
    }
    queue_.clear();
  }

 private:
  struct Held {  // the queue's reference to a node that leaves it, given back also when a hook or a closure throws
    Node* node;
    ~Held() {
      for (Output& output : header(node).results()) output.grad = Tensor();
      autograd::release(node);
    }
  };

  void give(Node* node, int output, Tensor grad) {
    NodeHeader& h = header(node);
    collect(h.outputs[output].grad, std::move(grad));
    if (h.is_queued) return;
    h.is_queued = true;
    autograd::retain(node);
    queue_.push_back(node);
    std::push_heap(queue_.begin(), queue_.end(), older);
  }

  static void call_hooks(NodeHeader& h) {
    for (auto& hook : *h.hooks)
      if (Tensor& grad = h.outputs[hook.output].grad; grad.defined()) {
        if (!grad.is_unshared()) grad = ops::clone(grad);  // a hook may write in place; others may hold this tensor
        hook.call(grad);
      }
  }

  // The leaf takes the tensor itself if nobody else holds it.
  static void finish_leaf(Leaf& leaf, NodeHeader& h) {
    Tensor grad = std::exchange(h.outputs[0].grad, Tensor());
    DType dtype = h.outputs[0].dtype == kF64 ? kF64 : kF32;
    MemoryTag tag("gradients");
    if (leaf.grad.defined()) ops::add_(leaf.grad, grad);
    else if (grad.dtype() != dtype) leaf.grad = ops::cast(grad, dtype);
    else if (grad.is_unshared() && grad.is_contiguous()) leaf.grad = std::move(grad);
    else leaf.grad = ops::clone(grad);
  }

  void visit(Node* node, NodeHeader& h) {
    WEFT_CHECK(!h.was_used, str("backward: ", name_of(h), " was already differentiated and what it kept is freed"),
               "call backward once per forward, or pass keeps_graph");
    std::array<Tensor, 4> few;
    std::vector<Tensor> many(h.num_outputs > few.size() ? h.num_outputs : 0);
    std::span<Tensor> dys = many.empty() ? std::span<Tensor>(few.data(), h.num_outputs) : std::span<Tensor>(many);
    for (size_t i = 0; i < dys.size(); ++i) dys[i] = std::exchange(h.outputs[i].grad, Tensor());
    uint64_t wanted = 0;
    for (size_t i = 0; i < std::min<size_t>(h.num_edges, 64); ++i) wanted |= uint64_t{h.edges[i].node != nullptr} << i;

    Grads grads = run_in_scope(node, h, dys, Wants(wanted));
    WEFT_CHECK(grads.size() == h.num_edges,
               str("backward: ", name_of(h), " returned ", grads.size(), " gradients for ", h.num_edges, " inputs"),
               "return one per input, undefined where there is none");
    if (!options_.keeps_graph) {
      h.was_used = true;
      node->drop_closure();
    }
    for (size_t i = 0; i < h.num_edges; ++i) {
      Edge& edge = h.edges[i];
      if (!edge.node || !grads[i].defined()) continue;
      check(h, i, grads[i]);
      give(edge.node, edge.output, std::move(grads[i]));
    }
  }

  // One scope: the op, in the module of its forward where that is known ("model.layers.0.mixer.q.linear").
  static Grads run_in_scope(Node* node, const NodeHeader& h, std::span<const Tensor> dys, Wants wants) {
    if (!h.path || h.path->empty()) {
      Scope scope(h.op);
      return node->run(dys, wants);
    }
    const std::string path = str(*h.path, ".", h.op);
    ScopeRoot root;  // the path has the names outside backward, if there are any
    Scope scope(path);
    return node->run(dys, wants);
  }

  static void check(NodeHeader& h, size_t input, const Tensor& grad) {
    const Output& wanted = header(h.edges[input].node).outputs[h.edges[input].output];
    WEFT_CHECK(
        grad.shape() == wanted.shape,
        str("backward: ", name_of(h), " returned a gradient ", grad, " for input ", input, " of shape ", wanted.shape),
        "a gradient has the shape of its input; ops::sum_to undoes broadcasting");
    if (checks_anomalies)
      WEFT_CHECK(ops::all_finite(grad),
                 str("backward: ", name_of(h), " returned a gradient with NaN or infinity for input ", input),
                 "look at the forward of this op in this module");
  }

  BackwardOptions options_;
  std::vector<Node*> queue_;
};

void run_from(std::span<const Var> roots, std::span<const Tensor> seeds, BackwardOptions options) {
  NoGrad no_grad;
  Backward backward(options);
  try {
    for (size_t i = 0; i < roots.size(); ++i)
      if (seeds[i].defined() && roots[i].wants_grad()) backward.add_root(roots[i], seeds[i]);
    backward.run();
  } catch (...) {
    backward.abandon();
    throw;
  }
}

}  // namespace

void backward(const Var& root, const Tensor& seed, BackwardOptions options) {
  WEFT_CHECK(root.wants_grad(), str("backward: ", root, " does not depend on a variable()"),
             "compute it from variables, outside NoGrad");
  Tensor start = seed;
  if (!start.defined()) {
    WEFT_CHECK(root.value().num_elements() == 1, str("backward: ", root, " has more than one element"),
               "reduce it to a scalar, or pass the gradient of it");
    start = Tensor::full(root.shape(), 1, root.dtype(), root.device());
  }
  WEFT_CHECK(start.shape() == root.shape(), str("backward: seed ", start, " for ", root),
             "the seed has the shape of the root");
  run_from({&root, 1}, {&start, 1}, options);
}

NoGrad::NoGrad() : outer_(recording) { recording = false; }
NoGrad::~NoGrad() { recording = outer_; }
bool is_recording() { return recording; }

void set_anomaly_mode(bool is_on) { checks_anomalies = is_on; }
bool anomaly_mode() { return checks_anomalies; }

namespace autograd {

bool set_recording(bool is_on) { return std::exchange(recording, is_on); }

void backward_through(std::span<const Var> roots, std::span<const Tensor> seeds) { run_from(roots, seeds, {}); }

Tensor take_grad(const Var& leaf) {
  Tensor grad = std::exchange(static_cast<Leaf&>(*leaf.node()).grad, Tensor());
  return grad.defined() ? ops::cast(grad, leaf.dtype()) : grad;
}

void check_recorded(const char* op, std::span<const Tensor> outputs) {
  for (size_t i = 0; i < outputs.size(); ++i)
    if (outputs[i].defined() && is_floating(outputs[i].dtype()))
      WEFT_CHECK(ops::all_finite(outputs[i]), str(op, ": output ", i, " ", outputs[i], " holds NaN or infinity"),
                 "this is the first op of the forward that made one; look at its inputs");
}

}  // namespace autograd
}  // namespace weft
