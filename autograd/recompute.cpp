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
  std::vector<Tensor> outputs;
  {
    FirstForward first_forward;
    for (const Var& output : f(inputs)) outputs.push_back(output.value());
  }
  // A first input that always wants a gradient keeps the node on the tape when only variables inside f want one.
  std::vector<Var> sources{variable(Tensor::zeros({}, kF32, Device::cpu()), "recompute")};
  std::vector<Saved> kept;
  std::vector<bool> wants;
  for (const Var& input : inputs) {
    sources.push_back(input);
    kept.emplace_back(input.value());
    wants.push_back(input.wants_grad());
  }
  auto backward_of = [f, kept, wants, path = Scope::path()](std::span<const Tensor> dys, Wants) {
    ScopeRoot root;  // the engine's names are not where f ran first, and random numbers are keyed by module path
    Scope scope(path);
    Recomputing recomputing;
    std::vector<Var> leaves, results;
    {
      Recording recording;
      for (size_t i = 0; i < kept.size(); ++i)
        leaves.push_back(wants[i] ? variable(kept[i], "input of recompute") : Var(kept[i].get()));
      results = f(leaves);
    }
    autograd::backward_through(results, dys);
    std::vector<Tensor> grads(1 + leaves.size());
    for (size_t i = 0; i < leaves.size(); ++i)
      if (wants[i]) grads[i + 1] = autograd::take_grad(leaves[i]);
    return Grads(std::move(grads));
  };
  return record("recompute", std::move(outputs), Inputs(std::span<const Var>(sources)), std::move(backward_of));
}

}  // namespace weft
