// The seam between a training and ranks that share it: each computes rows of its own, and what belongs to the step as a whole is summed over
// all of them. Every rank calls the same functions in the same order, whatever its rows hold.
#pragma once

#include <cstdint>
#include <span>

#include "weft/core/tensor.h"

namespace weft {

class RankSums {
 public:
  virtual ~RankSums() = default;
  // Counts of a step (targets, bytes) in place, before its first forward: losses are divided by the sums.
  virtual void sum_counts(std::span<int64_t> counts) = 0;
  // The gradient of the step of trained parameter number `param`, final on this rank, in place and in its own memory. It is called while
  // backward goes on, in the order in which gradients become final; it may return before the sum is there.
  virtual void sum_gradient(size_t param, Tensor& grad) = 0;
  // After the last backward: returns when all those sums are there, or work on their device that comes later will find them.
  virtual void finish_gradients() = 0;
  // Sums of losses and of running statistics, f64, in place, on whatever device they are.
  virtual void sum_values(Tensor& values) = 0;
};

}  // namespace weft
