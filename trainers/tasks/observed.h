// Shares of weights of every call of a forward, for the tasks.
#pragma once

#include <vector>

#include "weft/models/analysis.h"

namespace weft::tasks {

class Observed {
 public:
  Probe probe() {
    return {.weights = [this](std::string_view, const Tensor& weights, bool is_softmax) {
      shares_.push_back(weight_shares(weights, is_softmax));
    }};
  }
  const std::vector<Tensor>& shares() const { return shares_; }  // [B, T, T] f64

 private:
  std::vector<Tensor> shares_;
};

}  // namespace weft::tasks
