#include "ops/cuda/attention/backward_f32.cuh"

namespace weft::cuda::attention {
template void backward_plain<double>(const Problem&, const ops::AttentionOptions&);
}  // namespace weft::cuda::attention
