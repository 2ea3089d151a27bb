// CUDA devices of this machine, and the order of work on them. Every thread has one stream per device, which carries all its
// kernels and copies in order; the CPU waits only in synchronize(), Event::synchronize(), item(), to_vector() and copies to it.
// Memory goes back to the stream that it was taken on: a tensor that another thread's kernels have used must outlive them, so whoever
// drops it waits for an Event of that thread first.
// In a build without CUDA, and on a machine without a GPU or driver, num_cuda_devices() is 0 and cuda_problem() says why.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "weft/core/device.h"

namespace weft {

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
// Error without such a device. One without kernels is described, too, all but its free memory.
CudaDeviceInfo cuda_device_info(int index);

void synchronize(Device device);  // waits for this thread's work there; at once for the CPU
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
  bool is_reached() const;                      // whether the device is past it; waits for nothing
  double elapsed_ms(const Event& begin) const;  // between two events with time that have both been reached

 private:
  void record_cpu();

  Device device_;
  void* event_ = nullptr;
  double time_ms_ = 0;  // on the CPU, where work is done when record() is called
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

// With it on, every kernel is waited for, so that an error appears at the op that caused it. WEFT_CUDA_SYNC=1 at start.
void set_cuda_sync(bool is_on);

}  // namespace weft
