#include "ops/cuda/attention/backward_f32.cuh"

namespace weft::cuda::attention {
template void backward_plain<float>(const Problem&, const ops::AttentionOptions&);
}  // namespace weft::cuda::attention
