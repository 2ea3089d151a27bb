#include "ops/cuda/attention/forward_wgmma.cuh"

namespace weft::cuda::attention {
template void forward_wgmma<64>(const Problem&, const ops::AttentionOptions&);
}  // namespace weft::cuda::attention
