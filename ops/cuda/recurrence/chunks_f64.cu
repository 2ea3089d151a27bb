#include "ops/cuda/recurrence/backward.cuh"

namespace weft::cuda::recurrence {
template struct Chunks<Plain<double>>;
}  // namespace weft::cuda::recurrence
