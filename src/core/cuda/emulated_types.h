// The few types and calls of the CUDA runtime that headers and the allocator use, for the emulated build, which needs no CUDA
// toolkit. Device memory is memory of this process that nobody may touch but kernels and copies: anything else ends with SIGSEGV,
// as it would with a GPU.
#pragma once

#include <cstddef>

using cudaStream_t = struct EmulatedStream*;
enum cudaError_t { cudaSuccess = 0, cudaErrorMemoryAllocation = 2, cudaErrorIllegalAddress = 700 };
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}  // NOLINT: as in CUDA
};

cudaError_t cudaMalloc(void** data, size_t bytes);
cudaError_t cudaFree(void* data);
cudaError_t cudaMemsetAsync(void* data, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaMemGetInfo(size_t* free, size_t* total);
cudaError_t cudaGetLastError();

namespace weft::cuda {

// Where device memory lies (null before the first allocation), and how much there can be.
const void* device_memory();
size_t device_memory_capacity();

// While one lives, device memory can be read and written.
struct DeviceAccess {
  DeviceAccess();
  ~DeviceAccess();
  DeviceAccess(const DeviceAccess&) = delete;
  DeviceAccess& operator=(const DeviceAccess&) = delete;
};

}  // namespace weft::cuda
