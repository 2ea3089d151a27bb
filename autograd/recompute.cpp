#include "weft/autograd/recompute.h"

#include "autograd/internal/node_header.h"
#include "weft/autograd/record.h"
#include "weft/core/error.h"
#include "weft/core/scope.h"

namespace weft {

namespace {

thread_local int recompute_depth = 0, first_forward_depth = 0;

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

std::vector<Var> recompute(const VarFunction& f, std::span<const Var> inputs) {
  if (!is_recording()) return f(inputs);
  // The node's inputs are those of f, then what f captured: a captured variable has its gradient when this node has run.
  std::vector<Var> sources(inputs.begin(), inputs.end());
  std::vector<Tensor> outputs;
  {
    FirstForward first_forward;
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
  auto backward_of = [f, kept, wants, edges, path = Scope::path()](std::span<const Tensor> dys, Wants) {
    ScopeRoot root;  // the engine's names are not where f ran first, and random numbers are keyed by module path
    Scope scope(path);
    Recomputing recomputing;
    autograd::Outside outside(autograd::upcoming_sequence(), edges);
    std::vector<Var> leaves, results;
    {
      Recording recording;
      for (size_t i = 0; i < kept.size(); ++i)
        leaves.push_back(wants[i] ? variable(kept[i], "input of recompute") : Var(kept[i].get()));
      results = f(leaves);
    }
    autograd::backward_through(results, dys, outside);
    std::vector<Tensor> grads(leaves.size());
    for (size_t i = 0; i < leaves.size(); ++i)
      if (wants[i]) grads[i] = autograd::take_grad(leaves[i]);
    for (size_t i = 0; i < edges.size(); ++i) grads.push_back(outside.take(i));
    return Grads(std::move(grads));
  };
  return record("recompute", std::move(outputs), Inputs(std::span<const Var>(sources)), std::move(backward_of));
}

}  // namespace weft
