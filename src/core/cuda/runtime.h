// What kernels and library wrappers need of the CUDA runtime: streams, checks, copies. Only in builds with CUDA.
//   cudaStream_t stream = cuda::stream_of(y);            // makes y's device current for this thread
//   kernel<<<blocks, threads, 0, stream>>>(...);
//   cuda::check_launch("rms_norm", stream);              // Error at the op; waits for the kernel with set_cuda_sync(true)
#pragma once

#ifdef WEFT_CUDA_EMULATED
#include "src/core/cuda/emulated_types.h"
#else
#include <cuda_runtime_api.h>
#endif

#include <source_location>
#include <string_view>

#include "weft/core/tensor.h"

namespace weft {
void cuda_fill(Tensor& t, double value);  // contiguous
}

namespace weft::cuda {

// Error that names what was tried and the runtime's reason.
void check(cudaError_t status, std::string_view what, std::source_location location = std::source_location::current());

cudaStream_t stream(int device);  // this thread's; makes the device current
cudaStream_t stream_of(const Tensor& t);
void check_launch(std::string_view op, cudaStream_t stream,
                  std::source_location location = std::source_location::current());

int num_multiprocessors(int device);
int max_shared_bytes(int device);  // that a block may ask for
int architecture(int device);      // 10 * major + minor

// Bytes between any two places, in order with this thread's work on `device`. To host memory: returns when they are there.
void copy_bytes(void* to, const void* from, size_t bytes, Device to_device, Device from_device);
// From `device` to pinned memory, without a wait: the bytes are there when an Event recorded after it is reached.
void copy_bytes_later(void* to, const void* from, size_t bytes, Device device);

}  // namespace weft::cuda
