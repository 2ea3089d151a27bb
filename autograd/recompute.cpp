#include "weft/autograd/recompute.h"

#include <memory>
#include <string>

#include "autograd/internal/node_header.h"
#include "weft/autograd/record.h"
#include "weft/core/error.h"
#include "weft/core/scope.h"

namespace weft {

namespace {

thread_local int recompute_depth = 0, first_forward_depth = 0;

// What one recompute() keeps of its first run beside inputs, in the order of the calls.
struct Result {
  std::string op;
  std::vector<Saved> tensors;
};
using Results = std::vector<Result>;
using Compute = std::function<std::vector<Tensor>()>;

// One run of f: the first one adds results, the second one takes them in turn.
class Run {
 public:
  Run(Results& results, bool is_first)
      : results_(results), is_first_(is_first), num_no_grads_(autograd::num_no_grads()), outer_(innermost) {
    innermost = this;
  }
  ~Run() { innermost = outer_; }
  Run(const Run&) = delete;
  Run& operator=(const Run&) = delete;

  // Nothing is recorded in a first run, so a NoGrad of f itself is told by its depth.
  static bool is_kept() {
    if (!innermost) return false;
    return innermost->is_first_ ? autograd::num_no_grads() == innermost->num_no_grads_ : is_recording();
  }
  // A recompute() in the second run of another one has its first run then, and gets what the other one kept.
  static std::vector<Tensor> result(std::string_view op, const Compute& compute) {
    if (!innermost->is_first_) return innermost->take(op);
    std::vector<Tensor> tensors = innermost->outer_ ? innermost->outer_->take(op) : compute();
    Result& kept = innermost->results_.emplace_back(std::string(op));
    for (const Tensor& tensor : tensors) kept.tensors.emplace_back(tensor);
    return tensors;
  }
  void check_all_taken() const { check_same(next_ == results_.size(), "no more"); }

 private:
  std::vector<Tensor> take(std::string_view op) {
    check_same(next_ < results_.size() && results_[next_].op == op, op);
    const std::vector<Saved>& kept = results_[next_++].tensors;
    return std::vector<Tensor>(kept.begin(), kept.end());
  }
  void check_same(bool is_same, std::string_view asked) const {
    WEFT_CHECK(is_same,
               str("recompute: of the results that f kept in forward, number ", next_, " is ",
                   next_ < results_.size() ? results_[next_].op : "missing", ", and in backward it asks for ", asked),
               "let f make the same calls of attention each time");
  }

  static inline thread_local Run* innermost = nullptr;
  Results& results_;
  bool is_first_;
  int num_no_grads_;
  size_t next_ = 0;
  Run* outer_;
};

struct Recomputing {
  Recomputing() { ++recompute_depth; }
  ~Recomputing() { --recompute_depth; }
};

struct FirstForward {
  FirstForward() { ++first_forward_depth; }
  ~FirstForward() { --first_forward_depth; }
  NoGrad no_grad;
};

// Turns recording on inside a backward, which runs without.
struct Recording {
  bool outer = autograd::set_recording(true);
  ~Recording() { autograd::set_recording(outer); }
};

}  // namespace

bool is_recomputing() { return recompute_depth > 0; }
bool is_first_forward_of_recompute() { return first_forward_depth > 0; }

std::vector<Tensor> kept_by_recompute(std::string_view op, const std::function<std::vector<Tensor>()>& compute) {
  return Run::is_kept() ? Run::result(op, compute) : compute();
}

std::vector<Var> recompute(const VarFunction& f, std::span<const Var> inputs) {
  if (!is_recording()) return f(inputs);
  // The node's inputs are those of f, then what f captured: a captured variable has its gradient when this node has run.
  std::vector<Var> sources(inputs.begin(), inputs.end());
  std::vector<Tensor> outputs;
  auto results = std::make_shared<Results>();
  {
    FirstForward first_forward;
    Run run(*results, true);
    autograd::Reads captured;
    std::vector<Var> constants;
    for (const Var& input : inputs) constants.push_back(input.detach());
    for (const Var& output : f(constants)) {
      captured.note(output);
      outputs.push_back(output.value());
    }
    sources.insert(sources.end(), captured.vars().begin(), captured.vars().end());
  }
  std::vector<Saved> kept;
  std::vector<bool> wants;
  for (const Var& input : inputs) {
    kept.emplace_back(input.value());
    wants.push_back(input.wants_grad());
  }
  std::vector<autograd::Edge> edges;  // the node holds them
  for (size_t i = inputs.size(); i < sources.size(); ++i) edges.push_back({sources[i].node(), sources[i].output()});
  auto backward_of = [f, kept, wants, edges, results, path = Scope::path()](std::span<const Tensor> dys, Wants) {
    ScopeRoot root;  // the engine's names are not where f ran first, and random numbers are keyed by module path
    Scope scope(path);
    Recomputing recomputing;
    autograd::Outside outside(autograd::upcoming_sequence(), edges);
    std::vector<Var> leaves, outputs_again;
    {
      Recording recording;
      Run run(*results, false);
      for (size_t i = 0; i < kept.size(); ++i)
        leaves.push_back(wants[i] ? variable(kept[i], "input of recompute") : Var(kept[i].get()));
      outputs_again = f(leaves);
      run.check_all_taken();
    }
    autograd::backward_through(outputs_again, dys, outside);
    std::vector<Tensor> grads(leaves.size());
    for (size_t i = 0; i < leaves.size(); ++i)
      if (wants[i]) grads[i] = autograd::take_grad(leaves[i]);
    for (size_t i = 0; i < edges.size(); ++i) grads.push_back(outside.take(i));
    return Grads(std::move(grads));
  };
  return record("recompute", std::move(outputs), Inputs(std::span<const Var>(sources)), std::move(backward_of));
}

}  // namespace weft
