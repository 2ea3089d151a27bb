#include "ops/cuda/attention/forward_bf16.cuh"

namespace weft::cuda::attention {
template void forward_bf16<128>(const Problem&, const ops::AttentionOptions&);
}  // namespace weft::cuda::attention
