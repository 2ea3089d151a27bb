// backward(): one pass from roots to leaves. It first counts the recorded uses of every node that it will reach. A node whose uses have all
// run has its gradient: it runs then, the newest first. A leaf is finished at once, so its gradient is final while backward goes on.
#include <algorithm>
#include <array>
#include <atomic>

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
using autograd::Outside;

thread_local bool recording = true;
thread_local int no_grads = 0;
thread_local bool checks_anomalies = false;

std::string name_of(const NodeHeader& h) {
  return h.path && !h.path->empty() ? str(h.op, " in ", *h.path) : std::string(h.op);
}

bool older(const Node* a, const Node* b) {
  return header(const_cast<Node*>(a)).sequence < header(const_cast<Node*>(b)).sequence;
}

// Gradients of leaves are f32 (f64 for f64).
DType leaf_dtype(const NodeHeader& h) { return h.outputs[0].dtype == kF64 ? kF64 : kF32; }

// Adds `grad` to what an output got so far, in place where nobody else holds the memory. Sums for bf16 are f32, and whoever takes one
// rounds it once; the sum of two that ends here is rounded once anyway.
void collect(Output& output, Tensor grad, bool is_last) {
  Tensor& sum = output.grad;
  if (!sum.defined()) {
    sum = std::move(grad);
    return;
  }
  const bool is_pair = is_last && sum.dtype() == kBF16 && grad.dtype() == kBF16;
  sum = ops::cast(sum, output.dtype == kBF16 && !is_pair ? kF32 : output.dtype);
  if (sum.is_unshared() && sum.is_contiguous()) ops::add_(sum, grad);
  else sum = ops::add(sum, ops::cast(grad, sum.dtype()));
}

std::atomic<uint64_t> next_pass{1};

class Backward {
 public:
  Backward(const BackwardOptions& options, Outside* outside)
      : options_(options), outside_(outside), pass_(next_pass.fetch_add(1, std::memory_order_relaxed)) {}

  void run(std::span<const Var> roots, std::span<const Tensor> seeds) {
    auto for_roots = [&](auto&& f) {
      for (size_t i = 0; i < roots.size(); ++i)
        if (seeds[i].defined() && roots[i].wants_grad()) f(Edge{roots[i].node(), roots[i].output()}, seeds[i]);
    };
    for_roots([&](const Edge& root, const Tensor&) { count_use(root); });
    for (size_t i = 0; i < reached_.size(); ++i)  // grows as it goes
      for (const Edge& edge : header(reached_[i]).inputs())
        if (edge.node) count_use(edge);
    for (const Var& leaf : options_.leaves) finish_if_unused(leaf);
    for_roots([&](const Edge& root, const Tensor& seed) { give(root, seed); });
    while (!queue_.empty()) {
      std::pop_heap(queue_.begin(), queue_.end(), older);
      Node* node = queue_.back();
      queue_.pop_back();
      visit(node, header(node));
    }
  }

  // After an Error: gradients half way are dropped, so that the next backward starts clean. Leaves that were final keep theirs.
  void abandon() {
    for (Node* node : reached_)
      for (Output& output : header(node).results()) output.grad = Tensor();
  }

 private:
  bool is_outside(const Node* node) const {
    return outside_ && header(const_cast<Node*>(node)).sequence < outside_->first_sequence();
  }

  void count_use(const Edge& edge) {
    if (is_outside(edge.node)) return;
    NodeHeader& h = header(edge.node);
    if (std::exchange(h.pass, pass_) != pass_) {
      h.pending = 0;
      reached_.push_back(edge.node);
    }
    ++h.pending;
  }

  // What one use gives; an undefined gradient is none.
  void give(const Edge& to, Tensor grad) {
    if (is_outside(to.node)) {
      if (grad.defined()) collect(outside_->of(to), std::move(grad), false);
      return;
    }
    NodeHeader& h = header(to.node);
    if (grad.defined()) collect(h.outputs[to.output], std::move(grad), h.pending == 1);
    if (--h.pending > 0) return;
    if (h.is_leaf) return finish_leaf(static_cast<Leaf&>(*to.node), h);
    queue_.push_back(to.node);
    std::push_heap(queue_.begin(), queue_.end(), older);
  }

  // `grad` of output `output`: a hook may write in place, and others may hold this tensor.
  static void call_hooks(const NodeHeader& h, int output, Tensor& grad, bool is_of_step) {
    const std::vector<autograd::Hook> hooks = *h.hooks;  // one may remove itself
    for (const autograd::Hook& hook : hooks) {
      if (hook.output != output || hook.is_of_step != is_of_step) continue;
      if (!grad.is_unshared()) grad = ops::clone(grad);
      hook.call(grad);
      WEFT_CHECK(grad.defined() && grad.shape() == h.outputs[output].shape,
                 str("on_grad: a hook left ", grad, " for a gradient of shape ", h.outputs[output].shape),
                 "keep the shape");
    }
  }

  void finish_leaf(Leaf& leaf, NodeHeader& h) {
    Tensor grad = std::exchange(h.outputs[0].grad, Tensor());
    MemoryTag tag("gradients");
    if (h.hooks && grad.defined()) {
      grad = ops::cast(grad, leaf_dtype(h));
      call_hooks(h, 0, grad, false);
    }
    if (grad.defined()) {  // the leaf takes the tensor itself if nobody else holds it
      if (leaf.grad.defined()) ops::add_(leaf.grad, grad);
      else if (grad.dtype() != leaf_dtype(h)) leaf.grad = ops::cast(grad, leaf_dtype(h));
      else if (grad.is_unshared() && grad.is_contiguous()) leaf.grad = std::move(grad);
      else leaf.grad = ops::clone(grad);
    }
    if (h.hooks && options_.ends_step && leaf.grad.defined()) call_hooks(h, 0, leaf.grad, true);
  }

  // A listed leaf that this backward does not reach: its hooks see a gradient of zeros, which every rank then has.
  void finish_if_unused(const Var& var) {
    WEFT_CHECK(var.node() && header(var.node()).is_leaf, str("backward: options.leaves has ", var), "list variables");
    NodeHeader& h = header(var.node());
    if (h.pass == pass_ || !h.hooks) return;
    h.outputs[0].grad = Tensor::zeros(h.outputs[0].shape, leaf_dtype(h), var.device());
    finish_leaf(static_cast<Leaf&>(*var.node()), h);
  }

  void visit(Node* node, NodeHeader& h) {
    std::array<Tensor, 4> few;
    std::vector<Tensor> many(h.num_outputs > few.size() ? h.num_outputs : 0);
    std::span<Tensor> dys = many.empty() ? std::span<Tensor>(few.data(), h.num_outputs) : std::span<Tensor>(many);
    bool has_any = false;
    for (size_t i = 0; i < dys.size(); ++i) {
      Tensor grad = std::exchange(h.outputs[i].grad, Tensor());
      if (!grad.defined()) continue;
      has_any = true;
      dys[i] = ops::cast(grad, h.outputs[i].dtype);
      grad = Tensor();
      if (h.hooks) call_hooks(h, static_cast<int>(i), dys[i], false);
    }
    if (!has_any) {  // its uses had no gradient for it, so neither have its inputs
      for (const Edge& edge : h.inputs())
        if (edge.node) give(edge, Tensor());
      return;
    }
    WEFT_CHECK(!h.was_used, str("backward: ", name_of(h), " was already differentiated and what it kept is freed"),
               "call backward once per forward, or pass keeps_graph");
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
      if (!edge.node) continue;
      if (grads[i].defined()) check(h, i, grads[i]);
      give(edge, std::move(grads[i]));
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

  const BackwardOptions& options_;
  Outside* outside_;
  const uint64_t pass_;
  std::vector<Node*> reached_;  // the roots keep them
  std::vector<Node*> queue_;    // a heap of those that can run
};

void run_from(std::span<const Var> roots, std::span<const Tensor> seeds, const BackwardOptions& options,
              Outside* outside) {
  NoGrad no_grad;
  const std::vector<Var> held(roots.begin(), roots.end());  // whatever hooks do to the caller's
  Backward backward(options, outside);
  try {
    backward.run(held, seeds);
  } catch (...) {
    backward.abandon();
    throw;
  }
}

}  // namespace

void backward(const Var& root, const Tensor& seed, const BackwardOptions& options) {
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
  run_from({&root, 1}, {&start, 1}, options, nullptr);
}

NoGrad::NoGrad() : outer_(recording) {
  recording = false;
  ++no_grads;
}
NoGrad::~NoGrad() {
  recording = outer_;
  --no_grads;
}
bool is_recording() { return recording; }

void set_anomaly_mode(bool is_on) { checks_anomalies = is_on; }
bool anomaly_mode() { return checks_anomalies; }

namespace autograd {

bool set_recording(bool is_on) { return std::exchange(recording, is_on); }
int num_no_grads() { return no_grads; }

void backward_through(std::span<const Var> roots, std::span<const Tensor> seeds, Outside& outside) {
  run_from(roots, seeds, {}, &outside);
}

Tensor take_grad(const Var& leaf) { return std::exchange(static_cast<Leaf&>(*leaf.node()).grad, Tensor()); }

Output& Outside::of(const Edge& edge) {
  for (size_t i = 0; i < edges_.size(); ++i)
    if (edges_[i].node == edge.node && edges_[i].output == edge.output) return sums_[i];
  fail("recompute: f reads a variable in backward that it did not read in forward",
       "read the same variables each time, or pass them as inputs");
}

void check_recorded(const char* op, std::span<const Tensor> outputs) {
  for (size_t i = 0; i < outputs.size(); ++i)
    if (outputs[i].defined() && is_floating(outputs[i].dtype()))
      WEFT_CHECK(ops::all_finite(outputs[i]), str(op, ": output ", i, " ", outputs[i], " holds NaN or infinity"),
                 "this is the first op of the forward that made one; look at its inputs");
}

}  // namespace autograd
}  // namespace weft
