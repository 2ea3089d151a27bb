#include "ops/cuda/recurrence/backward.cuh"

namespace weft::cuda::recurrence {
template struct Chunks<TensorCores>;
}  // namespace weft::cuda::recurrence
