// Memory of nodes: blocks from a pool per thread, so that a step in steady state takes nothing from the heap.
#include <array>
#include <memory>

#include "autograd/internal/node_header.h"
#include "weft/core/error.h"
#include "weft/core/scope.h"

namespace weft::autograd {

namespace {

constexpr size_t kStep = 128, kNumClasses = 32;  // blocks up to 4 KiB are pooled

struct Pool {
  std::array<std::vector<void*>, kNumClasses> free;
  std::vector<Node*> dying;  // nodes whose last reference went while another one was being freed
  bool is_freeing = false;

  ~Pool();
};
thread_local bool pool_is_gone = false;  // Vars with static lifetime may be freed after their thread's pool

Pool& pool() {
  thread_local Pool pool;
  return pool;
}

Pool::~Pool() {
  for (auto& list : free)
    for (void* block : list) ::operator delete(block);
  pool_is_gone = true;
}

void* take_block(size_t bytes) {
  size_t index = (bytes - 1) / kStep;
  if (index < kNumClasses && !pool_is_gone) {
    auto& list = pool().free[index];
    if (!list.empty()) {
      void* block = list.back();
      list.pop_back();
      return block;
    }
    return ::operator new((index + 1) * kStep);
  }
  return ::operator new(bytes);
}

void give_block(void* block, size_t bytes) {
  size_t index = (bytes - 1) / kStep;
  if (index < kNumClasses && !pool_is_gone) pool().free[index].push_back(block);
  else ::operator delete(block);
}

void destroy(Node* node) {
  NodeHeader& h = header(node);
  size_t bytes = h.block_bytes;
  for (Edge& edge : h.inputs())
    if (edge.node) release(edge.node);
  std::destroy(h.outputs, h.outputs + h.num_outputs);
  delete h.hooks;
  delete h.path;
  std::destroy_at(node);
  NodeHeader* block = &h;
  std::destroy_at(block);
  give_block(block, bytes);
}

std::atomic<uint64_t> next_sequence{1};

}  // namespace

void retain(Node* node) { header(node).references.fetch_add(1, std::memory_order_relaxed); }

// Iterative, so that a chain of a million nodes does not exhaust the stack.
void release(Node* node) {
  if (header(node).references.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  if (pool_is_gone) return destroy(node);
  Pool& p = pool();
  p.dying.push_back(node);
  if (p.is_freeing) return;
  p.is_freeing = true;
  while (!p.dying.empty()) {
    Node* next = p.dying.back();
    p.dying.pop_back();
    destroy(next);
  }
  p.is_freeing = false;
}

void* allocate_node(size_t object_bytes, const char* op, std::span<const Tensor> outputs, const Inputs& inputs) {
  object_bytes = (object_bytes + 15) / 16 * 16;
  size_t edge_bytes = (inputs.size() * sizeof(Edge) + 15) / 16 * 16;
  size_t bytes = sizeof(NodeHeader) + object_bytes + edge_bytes + outputs.size() * sizeof(Output);
  char* block = static_cast<char*>(take_block(bytes));
  auto* h = ::new (block) NodeHeader;
  h->op = op;
  h->sequence = next_sequence.fetch_add(1, std::memory_order_relaxed);
  h->block_bytes = static_cast<uint32_t>(bytes);
  h->edges = reinterpret_cast<Edge*>(block + sizeof(NodeHeader) + object_bytes);
  h->num_edges = static_cast<uint32_t>(inputs.size());
  for (size_t i = 0; i < inputs.size(); ++i) {
    Node* source = inputs[i].node();
    if (source) retain(source);
    ::new (h->edges + i) Edge{source, inputs[i].output()};
  }
  h->outputs = reinterpret_cast<Output*>(block + sizeof(NodeHeader) + object_bytes + edge_bytes);
  h->num_outputs = static_cast<uint32_t>(outputs.size());
  for (size_t i = 0; i < outputs.size(); ++i) ::new (h->outputs + i) Output{outputs[i].shape(), outputs[i].dtype(), {}};
  if (anomaly_mode() || Scope::is_watched()) [[unlikely]]
    h->path = new std::string(Scope::path());
  return block + sizeof(NodeHeader);
}

uint64_t upcoming_sequence() { return next_sequence.load(std::memory_order_relaxed); }

static thread_local Reads* reads = nullptr;

Reads::Reads() : outer_(std::exchange(reads, this)) {}
Reads::~Reads() { reads = outer_; }
void Reads::note(const Var& var) {
  if (!var.node()) return;
  for (const Var& known : vars_)
    if (known.node() == var.node() && known.output() == var.output()) return;
  vars_.push_back(var);
}

bool wants_node(const Inputs& inputs) {
  if (!is_recording()) {
    if (reads) [[unlikely]]
      for (size_t i = 0; i < inputs.size(); ++i) reads->note(inputs[i]);
    return false;
  }
  for (size_t i = 0; i < inputs.size(); ++i)
    if (inputs[i].wants_grad()) return true;
  return false;
}

}  // namespace weft::autograd

namespace weft {

using autograd::header;
using autograd::Leaf;

Var variable(const Tensor& value, std::string_view name) {
  WEFT_CHECK(is_floating(value.dtype()), str("variable: ", name, " is ", value),
             "gradients exist for f32, bf16 and f64 only");
  void* memory = autograd::allocate_node(sizeof(Leaf), "variable", {&value, 1}, Inputs());
  auto* leaf = ::new (memory) Leaf(name);
  header(leaf).is_leaf = true;
  return Var(value, leaf, 0);
}

static Leaf& leaf_of(const Var& var, std::string_view op) {
  WEFT_CHECK(var.node() && header(var.node()).is_leaf, str(op, ": ", var, " is not a variable()"),
             "ask the Var that variable() or a Param returned");
  return static_cast<Leaf&>(*var.node());
}

const Tensor& Var::grad() const { return leaf_of(*this, "grad").grad; }

void Var::set_grad(Tensor grad) {
  WEFT_CHECK(!grad.defined() || grad.shape() == shape(), str("set_grad: ", grad, " for a variable ", *this),
             "keep the shape");
  leaf_of(*this, "set_grad").grad = std::move(grad);
}

void Var::set_value(const Tensor& value) {
  Leaf& leaf = leaf_of(*this, "set_value");
  WEFT_CHECK(value.shape() == shape(), str("set_value: ", value, " for ", leaf.name, " ", *this), "keep the shape");
  value_ = value;
  header(&leaf).outputs[0].dtype = value.dtype();
}

static GradHook add_hook(const Var& var, bool is_of_step, std::function<void(Tensor&)> call) {
  static std::atomic<uint64_t> next_id{1};
  const uint64_t id = next_id.fetch_add(1, std::memory_order_relaxed);
  auto& hooks = header(var.node()).hooks;
  if (!hooks) hooks = new std::vector<autograd::Hook>;
  hooks->push_back({var.output(), is_of_step, id, std::move(call)});
  return GradHook(var, id);
}

GradHook Var::on_grad(std::function<void(Tensor&)> hook) const {
  WEFT_CHECK(node_, str("on_grad: ", *this, " is a constant"), "hook a Var that wants a gradient");
  return add_hook(*this, false, std::move(hook));
}

GradHook Var::on_step_grad(std::function<void(Tensor&)> hook) const {
  leaf_of(*this, "on_step_grad");
  return add_hook(*this, true, std::move(hook));
}

GradHook::GradHook(const Var& of, uint64_t id) : node_(of.node()), id_(id) { autograd::retain(node_); }
GradHook::~GradHook() {
  if (node_) autograd::release(node_);
}
void GradHook::remove() {
  if (!node_) return;
  auto*& hooks = header(node_).hooks;
  std::erase_if(*hooks, [&](const autograd::Hook& hook) { return hook.id == id_; });
  if (hooks->empty()) delete std::exchange(hooks, nullptr);
  autograd::release(std::exchange(node_, nullptr));
}

std::string to_string(const Var& x) { return str(x.value(), x.wants_grad() ? " (wants gradient)" : ""); }

const Tensor& Saved::get() const {
  WEFT_CHECK(tensor_.version() == version_,
             str("a tensor kept for backward was changed in place: ", tensor_, " has version ", tensor_.version(),
                 ", was kept at ", version_),
             "change it after backward(), or work on ops::clone of it");
  return tensor_;
}

}  // namespace weft
