// Events of the CPU, and the whole of stream.h in a build without CUDA.
#include "weft/core/stream.h"

#include <atomic>
#include <chrono>
#include <new>

#include "src/core/cuda_build.h"
#include "src/core/device_waits.h"
#include "weft/core/error.h"

namespace weft {

bool has_cuda_kernels() { return kCuda; }
bool has_emulated_cuda() { return kCudaEmulated; }

static std::atomic<int64_t> device_waits{0};
void count_device_wait(int64_t count) { device_waits.fetch_add(count, std::memory_order_relaxed); }
int64_t num_device_waits() { return device_waits.load(std::memory_order_relaxed); }

void Event::record_cpu() {
  auto now = std::chrono::steady_clock::now().time_since_epoch();
  time_ms_ = std::chrono::duration<double, std::milli>(now).count();
}

#ifndef WEFT_WITH_CUDA

int num_cuda_devices() { return 0; }
std::string cuda_problem() { return "this build has no CUDA"; }

CudaDeviceInfo cuda_device_info(int index) {
  fail(str("cuda:", index, ": this build has no CUDA"), "build with the preset cuda");
}

void synchronize(Device device) {
  WEFT_CHECK(device.is_cpu(), str("synchronize: ", device, " is not in this build"), "build with the preset cuda");
}

Event::Event(Device device, bool) : device_(device) {
  WEFT_CHECK(device.is_cpu(), str("Event: ", device, " is not in this build"), "build with the preset cuda");
}
Event::~Event() = default;
void Event::record() { record_cpu(); }
void Event::wait(Device) {}
void Event::synchronize() {}
bool Event::is_reached() const { return true; }
double Event::elapsed_ms(const Event& begin) const { return time_ms_ - begin.time_ms_; }

PinnedBuffer::PinnedBuffer(size_t bytes) : data_(::operator new(bytes)), bytes_(bytes) {}
PinnedBuffer::~PinnedBuffer() { ::operator delete(data_); }

void set_cuda_sync(bool) {}

#endif

}  // namespace weft
