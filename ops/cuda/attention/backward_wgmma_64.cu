#include "ops/cuda/attention/backward_wgmma.cuh"

namespace weft::cuda::attention {
template void backward_wgmma<64>(const Problem&, const ops::AttentionOptions&);
}  // namespace weft::cuda::attention
