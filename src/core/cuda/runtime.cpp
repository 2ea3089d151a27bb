// Devices, streams, events, pinned memory and error texts over the CUDA runtime. The program starts without a driver: the first
// question is cudaGetDeviceCount, and nothing else is asked where it fails.
#include "src/core/cuda/runtime.h"

#include <cuda_runtime.h>

#include <array>
#include <atomic>
#include <cstdlib>
#include <mutex>
#include <vector>

#include "src/core/cuda/problems.h"
#include "src/core/device_waits.h"
#include "weft/core/dry_run.h"
#include "weft/core/stream.h"

namespace weft {

namespace cuda {

namespace {

constexpr int kMaxDevices = 16;

struct Found {
  int count = 0;
  std::string problem;
};

Found find_devices() {
  Found found;
  cudaError_t status = cudaGetDeviceCount(&found.count);
  if (status == cudaSuccess && found.count > 0) {
    found.count = std::min(found.count, kMaxDevices);
    return found;
  }
  found.count = 0;
  if (status == cudaSuccess || status == cudaErrorNoDevice) found.problem = "the driver finds no CUDA device";
  else if (status == cudaErrorInsufficientDriver)  // what a machine without any driver answers, too
    found.problem = str("no CUDA driver, or one older than this build's CUDA ", CUDART_VERSION / 1000, ".",
                        CUDART_VERSION % 1000 / 10, " (", cudaGetErrorName(status), ")");
  else found.problem = str("no CUDA: ", cudaGetErrorString(status), " (", cudaGetErrorName(status), ")");
  cudaGetLastError();
  return found;
}

const Found& devices() {
  static const Found found = find_devices();
  return found;
}

struct Properties {
  int multiprocessors = 0, shared_bytes = 0, architecture = 0;
};

Properties ask(int device) {
  Properties p;
  int major = 0, minor = 0;
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "compute capability");
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "compute capability");
  check(cudaDeviceGetAttribute(&p.multiprocessors, cudaDevAttrMultiProcessorCount, device), "multiprocessors");
  check(cudaDeviceGetAttribute(&p.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "shared memory");
  p.architecture = 10 * major + minor;
  return p;
}

const Properties& properties(int device) {
  static std::array<Properties, kMaxDevices> all;
  static std::array<std::once_flag, kMaxDevices> once;
  auto i = static_cast<size_t>(device);
  std::call_once(once[i], [&] { all[i] = ask(device); });
  return all[i];
}

void check_exists(int device) {
  WEFT_CHECK(devices().count > 0, str("cuda:", device, ": this machine has no usable GPU: ", devices().problem),
             "install a GPU and its driver, or use Device::cpu() (train.device=cpu)");
  WEFT_CHECK(device >= 0 && device < devices().count,
             str("cuda:", device, ": this machine has ", devices().count, " GPUs"),
             str("use cuda:0 to cuda:", devices().count - 1));
}

// After these errors every call of this process answers with the same one.
bool is_sticky(cudaError_t status) {
  switch (status) {
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorIllegalInstruction:
    case cudaErrorHardwareStackError:
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
#if CUDART_VERSION >= 13000
    case cudaErrorContained:
    case cudaErrorTensorMemoryLeak:
#endif
      return true;
    default: return false;
  }
}

// Streams of one thread. They live as long as the thread.
struct Streams {
  std::array<cudaStream_t, kMaxDevices> of{};
  ~Streams() {
    for (cudaStream_t s : of)
      if (s) cudaStreamSynchronize(s), cudaStreamDestroy(s);
  }
};
thread_local Streams streams;
thread_local int current = -1;

std::atomic<int> sync_mode{-1};
bool is_sync() {
  int mode = sync_mode.load(std::memory_order_relaxed);
  if (mode < 0) {
    const char* text = std::getenv("WEFT_CUDA_SYNC");
    mode = text && *text == '1';
    sync_mode.store(mode);
  }
  return mode != 0;
}

cudaEvent_t handle(void* event) { return static_cast<cudaEvent_t>(event); }

}  // namespace

void check(cudaError_t status, std::string_view what, std::source_location location) {
  if (status == cudaSuccess) [[likely]]
    return;
  cudaGetLastError();
  fail_call(what, cudaGetErrorName(status), cudaGetErrorString(status), is_sticky(status), location);
}

cudaStream_t stream(int device) {
  if (current != device) {
    check_exists(device);
    check_architecture(device, properties(device).architecture);
    check(cudaSetDevice(device), "choose a device");
    current = device;
  }
  cudaStream_t& s = streams.of[static_cast<size_t>(device)];
  if (!s) check(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking), "make a stream");
  return s;
}

cudaStream_t stream_of(const Tensor& t) { return stream(t.device().index); }

void check_launch(std::string_view op, cudaStream_t stream, std::source_location location) {
  check(cudaGetLastError(), op, location);
  if (is_sync()) check(cudaStreamSynchronize(stream), op, location);
}

int num_multiprocessors(int device) { return properties(device).multiprocessors; }
int max_shared_bytes(int device) { return properties(device).shared_bytes; }
int architecture(int device) { return properties(device).architecture; }

void copy_bytes(void* to, const void* from, size_t bytes, Device to_device, Device from_device) {
  if (bytes == 0 || is_dry_run()) return;
  const char* what = to_device.is_cpu() ? "copy to the CPU" : from_device.is_cpu() ? "copy to a GPU" : "copy";
  if (to_device.is_cuda() && from_device.is_cuda() && to_device != from_device) {
    Event ready(from_device);  // what the other device wrote
    ready.record();
    ready.synchronize();
  }
  cudaStream_t s = stream(to_device.is_cuda() ? to_device.index : from_device.index);
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, s), what);
  if (to_device.is_cuda() && from_device.is_cuda() && to_device != from_device) {
    // What this thread asks of the source's device from here on comes after the copy: its memory may be given away.
    Event done(to_device);
    done.record();
    done.wait(from_device);
  }
  if (!to_device.is_cpu()) return;
  count_device_wait();
  check(cudaStreamSynchronize(s), what);
}

void copy_bytes_later(void* to, const void* from, size_t bytes, Device device) {
  cudaStream_t s = stream(device.index);
  if (bytes > 0 && !is_dry_run())
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, s), "copy to pinned memory");
}

}  // namespace cuda

int num_cuda_devices() { return cuda::devices().count; }
std::string cuda_problem() { return cuda::devices().problem; }

CudaDeviceInfo cuda_device_info(int index) {
  cuda::check_exists(index);
  cudaDeviceProp p{};
  cuda::check(cudaGetDeviceProperties(&p, index), "device properties");
  CudaDeviceInfo info{.name = p.name,
                      .major = p.major,
                      .minor = p.minor,
                      .num_multiprocessors = p.multiProcessorCount,
                      .memory_bytes = static_cast<int64_t>(p.totalGlobalMem),
                      .problem = cuda::architecture_problem(10 * p.major + p.minor)};
  cuda::check(cudaDriverGetVersion(&info.driver_version), "driver version");
  cuda::check(cudaRuntimeGetVersion(&info.runtime_version), "runtime version");
  if (!info.problem.empty()) return info;  // the rest needs the device to be current, which it cannot be
  cuda::stream(index);
  size_t free = 0, total = 0;
  cuda::check(cudaMemGetInfo(&free, &total), "free memory");
  info.memory_bytes = static_cast<int64_t>(total), info.free_bytes = static_cast<int64_t>(free);
  return info;
}

void synchronize(Device device) {
  if (!device.is_cuda()) return;
  count_device_wait();
  cuda::check(cudaStreamSynchronize(cuda::stream(device.index)), "synchronize");
}

Event::Event(Device device, bool has_time) : device_(device) {
  if (device.is_cpu()) return;
  cuda::stream(device.index);
  cudaEvent_t event = nullptr;
  cuda::check(cudaEventCreateWithFlags(&event, has_time ? cudaEventDefault : cudaEventDisableTiming), "make an event");
  event_ = event;
}

Event::~Event() {
  if (event_) cudaEventDestroy(cuda::handle(event_));
}

void Event::record() {
  if (!event_) return record_cpu();
  cuda::check(cudaEventRecord(cuda::handle(event_), cuda::stream(device_.index)), "record an event");
}

void Event::wait(Device other) {
  if (event_ && other.is_cuda())
    cuda::check(cudaStreamWaitEvent(cuda::stream(other.index), cuda::handle(event_)), "wait for an event");
}

void Event::synchronize() {
  if (!event_) return;
  count_device_wait();
  cuda::check(cudaEventSynchronize(cuda::handle(event_)), "wait for an event");
}

bool Event::is_reached() const {
  if (!event_) return true;
  const cudaError_t status = cudaEventQuery(cuda::handle(event_));
  if (status == cudaErrorNotReady) return cudaGetLastError(), false;  // no error, but the next check would find it
  cuda::check(status, "ask for an event");
  return true;
}

double Event::elapsed_ms(const Event& begin) const {
  if (!event_) return time_ms_ - begin.time_ms_;
  float ms = 0;
  cuda::check(cudaEventElapsedTime(&ms, cuda::handle(begin.event_), cuda::handle(event_)), "time between events");
  return ms;
}

PinnedBuffer::PinnedBuffer(size_t bytes) : bytes_(bytes), is_pinned_(num_cuda_devices() > 0) {
  if (is_pinned_) cuda::check(cudaMallocHost(&data_, std::max<size_t>(bytes, 1)), str("pin ", bytes, " bytes"));
  else data_ = ::operator new(bytes);
}

PinnedBuffer::~PinnedBuffer() {
  if (is_pinned_) cudaFreeHost(data_);
  else ::operator delete(data_);
}

void set_cuda_sync(bool is_on) { cuda::sync_mode.store(is_on); }

}  // namespace weft
