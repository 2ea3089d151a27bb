// What the tape keeps of a node besides its closure. A node is one block: [NodeHeader | NodeOf<closure> | edges | outputs].
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <new>
#include <span>
#include <string>
#include <vector>

#include "weft/autograd/record.h"

namespace weft::autograd {

// Where an input came from: output `output` of `node`; node is nullptr if that input wants no gradient.
struct Edge {
  Node* node = nullptr;
  int output = 0;
};

struct Output {
  Shape shape;
  DType dtype = kF32;
  Tensor grad;  // collected during backward
};

struct Hook {
  int output;
  bool is_of_step;  // sees the sum over a step's backwards
  uint64_t id;
  std::function<void(Tensor&)> call;
};

struct alignas(16) NodeHeader {
  std::atomic<int64_t> references{1};
  const char* op = "";
  uint64_t sequence = 0;  // creation order on all threads: consumers have higher numbers than what they consume
  Edge* edges = nullptr;
  Output* outputs = nullptr;
  uint32_t num_edges = 0, num_outputs = 0;
  uint32_t block_bytes = 0;
  uint32_t pending = 0;  // uses in backward number `pass` that have not run
  uint64_t pass = 0;
  bool is_leaf = false, was_used = false;
  std::vector<Hook>* hooks = nullptr;  // rare
  std::string* path = nullptr;         // module path, in anomaly mode and while scopes are watched

  std::span<Edge> inputs() { return {edges, num_edges}; }
  std::span<Output> results() { return {outputs, num_outputs}; }
};

inline NodeHeader& header(Node* node) {
  return *std::launder(reinterpret_cast<NodeHeader*>(reinterpret_cast<char*>(node) - sizeof(NodeHeader)));
}

// A variable(): collects gradients instead of passing them on.
class Leaf final : public Node {
 public:
  explicit Leaf(std::string_view leaf_name) : name(leaf_name) {}
  Grads run(std::span<const Tensor>, Wants) override { return Grads{}; }
  void drop_closure() override {}

  std::string name;
  Tensor grad;  // f32 (f64 for f64)
};

bool set_recording(bool is_on);  // returns what it was
int num_no_grads();              // that live on this thread
uint64_t upcoming_sequence();    // of the next node

// While one lives and nothing is recorded, what functions read of the tape: what a first forward captured.
class Reads {
 public:
  Reads();
  ~Reads();
  Reads(const Reads&) = delete;
  Reads& operator=(const Reads&) = delete;
  void note(const Var& var);
  const std::vector<Var>& vars() const { return vars_; }  // each once, in the order of the first reading

 private:
  std::vector<Var> vars_;
  Reads* outer_;
};

// Nodes older than what a backward recomputes belong to the backward around it: their gradients are collected here, not passed on.
class Outside {
 public:
  Outside(uint64_t first_sequence, std::span<const Edge> edges)
      : first_sequence_(first_sequence), edges_(edges), sums_(edges.size()) {
    for (size_t i = 0; i < edges.size(); ++i) sums_[i].dtype = header(edges[i].node).outputs[edges[i].output].dtype;
  }
  uint64_t first_sequence() const { return first_sequence_; }
  Output& of(const Edge& edge);  // Error if it is none of the edges
  Tensor take(size_t i) { return std::move(sums_[i].grad); }

 private:
  uint64_t first_sequence_;
  std::span<const Edge> edges_;
  std::vector<Output> sums_;
};

// One backward from several roots; undefined seeds are skipped.
void backward_through(std::span<const Var> roots, std::span<const Tensor> seeds, Outside& outside);
Tensor take_grad(const Var& leaf);  // moves the collected gradient out

}  // namespace weft::autograd
