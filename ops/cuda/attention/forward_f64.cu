#include "ops/cuda/attention/forward_f32.cuh"

namespace weft::cuda::attention {
template void forward_plain<double>(const Problem&, const ops::AttentionOptions&);
}  // namespace weft::cuda::attention
