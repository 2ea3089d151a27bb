// CUDA devices of this machine, and the order of work on them. Every thread has one stream per device, on which its kernels and copies run
// in order. The CPU waits only in synchronize(), Event::synchronize(), item(), to_vector() and copies to the CPU.
// Freed memory is used again on the stream that took it. A tensor that kernels of another thread use must therefore live until they have
// run: before you drop it, wait for an Event of that thread.
// In a build without CUDA, and on a machine without a GPU or driver, num_cuda_devices() is 0 and cuda_problem() says why.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "weft/core/device.h"

namespace weft {

bool has_cuda_kernels();  // the library was built with kernels for GPUs
bool has_emulated_cuda();  // the CPU plays the GPU, for tests of kernels. Such a GPU is used only where a caller names it

int num_cuda_devices();
std::string cuda_problem();  // "" if there is a device

struct CudaDeviceInfo {
  std::string name;
  int major = 0, minor = 0;  // compute capability
  int num_multiprocessors = 0;
  int64_t memory_bytes = 0, free_bytes = 0;
  int driver_version = 0, runtime_version = 0;  // 1000 * major + 10 * minor
  std::string problem;                          // why this build has no kernels for it; "" if it has
};
// Error if there is no such device. A device that this build has no kernels for is described too, without its free memory.
CudaDeviceInfo cuda_device_info(int index);

void synchronize(Device device);  // waits for this thread's work there; for the CPU it returns at once
int64_t num_device_waits();       // how often this process's CPU threads have waited for a GPU so far

// A point in this thread's work on a device.
class Event {
 public:
  explicit Event(Device device, bool has_time = false);
  ~Event();
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  void record();                                // after everything this thread has asked for so far
  void wait() { wait(device_); }                // later work of the calling thread on the device comes after it
  void wait(Device other);                      // later work on another device
  void synchronize();                           // the CPU waits for it
  bool is_reached() const;                      // whether the device has reached it; does not wait
  double elapsed_ms(const Event& begin) const;  // of two events with times, both reached

 private:
  void record_cpu();

  Device device_;
  void* event_ = nullptr;
  double time_ms_ = 0;  // on the CPU, where the work is done before record() is called
};

// Host memory that devices copy from and to without staging. Ordinary memory where there is no CUDA device.
class PinnedBuffer {
 public:
  explicit PinnedBuffer(size_t bytes);
  ~PinnedBuffer();
  PinnedBuffer(const PinnedBuffer&) = delete;
  PinnedBuffer& operator=(const PinnedBuffer&) = delete;

  void* data() { return data_; }
  size_t bytes() const { return bytes_; }
  bool is_pinned() const { return is_pinned_; }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
  bool is_pinned_ = false;
};

// If on, the CPU waits for every kernel, so that an error appears at the op that caused it. WEFT_CUDA_SYNC=1 turns it on at start.
void set_cuda_sync(bool is_on);

}  // namespace weft
