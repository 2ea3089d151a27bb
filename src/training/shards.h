// Parameters whose updates the ranks share (ZeRO): what of each is updated here, how the others' parts come back, and the optimiser's state of
// all ranks as one.
#pragma once

#include <span>
#include <string>
#include <utility>
#include <vector>

#include "src/training/gradient_plan.h"
#include "weft/comm/communicator.h"
#include "weft/optim/optimizer.h"

namespace weft {

class Shards {
 public:
  using State = std::vector<std::pair<std::string, Tensor>>;

  Shards(dist::Communicator& comm, std::vector<OptimizerParam> params, const std::vector<Bucket>& buckets);

  // All parameters, with the parts that an Optimizer updates here.
  const std::vector<OptimizerParam>& params() const { return params_; }
  // For an optimiser that knows no parts: those that are updated here, and their gradients.
  std::vector<OptimizerParam> params_here() const;
  std::vector<Tensor> grads_here(std::span<const Tensor> grads) const;

  // Every rank sends what it has updated and gets the rest, without a copy in between. All ranks call it.
  void fetch_parts();
  // A tensor of the state that one rank without shards has, and the ranks that have its elements.
  struct Whole {
    struct Source {
      int rank;
      size_t number;         // in the state of that rank
      int64_t begin, count;  // elements
    };
    std::string name;
    DType dtype;
    Shape shape;
    std::vector<Source> sources = {};
  };
  // Of the state of all ranks. All ranks call it, and have the same.
  std::vector<Whole> whole_state(const State& mine) const;
  // On rank 0 that tensor; nothing on the others. All ranks call it.
  Tensor gather(const Whole& whole, const State& mine) const;
  // What of the state of all ranks an optimiser of params_here() has.
  State of_here(const State& all) const;

 private:
  struct Line;
  bool is_elsewhere(size_t param) const {
    return params_[param].end >= 0 && params_[param].begin == params_[param].end;
  }
  // The parameter whose state has this name; params_.size() if none.
  size_t param_of(std::string_view name) const;
  Line line_of(const std::string& name, const Tensor& tensor) const;

  dist::Communicator& comm_;
  std::vector<OptimizerParam> params_;
  std::vector<dist::Send> sends_;  // of parts of parameters, which stay where they are
  std::vector<dist::Receive> receives_;
};

}  // namespace weft
