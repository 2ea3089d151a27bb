#include "ops/cuda/recurrence/backward.cuh"

namespace weft::cuda::recurrence {
template struct Chunks<Plain<float>>;
}  // namespace weft::cuda::recurrence
