// Which gradients are summed together, and which rank updates what: the same on every rank.
#pragma once

#include <span>
#include <vector>

#include "weft/core/tensor.h"

namespace weft {

// Elements of a parameter, row by row.
struct Part {
  size_t param;
  int64_t begin, end;
};
struct Bucket {
  std::vector<size_t>
      params;  // from the last of the model to the first: about the order in which gradients become final
  std::vector<std::vector<Part>> parts;  // by rank, what it updates; empty where all ranks update everything
};

// Buckets of at least `bytes`, but for the last. Gradients have the dtypes of the parameters, and a bucket one.
std::vector<Bucket> plan_buckets(std::span<const Tensor> params, int64_t bytes);
// Of each bucket every rank gets an equal part. Parameters whose cost is above 0 stay whole; their costs are balanced over the ranks.
void share_out(std::vector<Bucket>& buckets, std::span<const Tensor> params, std::span<const double> whole_costs,
               int ranks);
int64_t num_elements(std::span<const Part> parts);
Tensor part_of(const Tensor& whole, const Part& part);  // a view [end - begin]

}  // namespace weft
