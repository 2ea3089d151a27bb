#include "ops/cuda/attention/backward_bf16.cuh"

namespace weft::cuda::attention {
template void backward_bf16<256>(const Problem&, const ops::AttentionOptions&);
}  // namespace weft::cuda::attention
