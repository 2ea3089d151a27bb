// What stands around the kernels of chunks, in plain loops over elements: of two passes, and of the end of backward.
#pragma once

#include "ops/cuda/recurrence/chunk.cuh"

namespace weft::cuda::recurrence {

// p.kept_decays, from `total`.
template <class T>
void keep_decays(const Work<T>& w);
// `states` and p.last_state from those that were kept and p.state.
template <class T>
void correct_states(const Work<T>& w);

// Gradients of decays, and sums of dq and dk over the value heads of a group.
template <class T>
void finish_backward(const Work<T>& w);

}  // namespace weft::cuda::recurrence
