// The emulated GPU, cuda:0: its work is done by the CPU when it is asked for. For tests of kernels on machines
// without a GPU (ops/cuda/emulator/emulator.h); it says nothing about speed, and nothing about what a real device does with a race.
#include <sys/mman.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>

#include "src/core/cuda/problems.h"
#include "src/core/cuda/runtime.h"
#include "src/core/device_waits.h"
#include "src/core/scope_watch.h"
#include "weft/core/dry_run.h"
#include "weft/core/stream.h"

namespace {

// What goes wrong, for tests of errors, from the environment: WEFT_EMULATED_GPU="memory=BYTES", "architecture=75", or "fault=N": kernel
// number N fails, and everything after it with the same error, as on a device.
struct Faults {
  size_t memory_bytes = 0;
  int architecture = 90;
  int64_t fault_at = 0;
  std::atomic<int64_t> launches = 0;

  Faults() {
    const char* text = std::getenv("WEFT_EMULATED_GPU");
    if (!text) return;
    const std::string_view all(text);
    const size_t equals = all.find('=');
    const std::string_view name = all.substr(0, equals);
    const char* digits = equals == all.npos ? "" : text + equals + 1;
    char* end = nullptr;
    const int64_t number = std::strtoll(digits, &end, 10);
    bool is_known = true;
    if (name == "memory") memory_bytes = static_cast<size_t>(number);
    else if (name == "architecture") architecture = static_cast<int>(number);
    else if (name == "fault") fault_at = number;
    else is_known = false;
    WEFT_CHECK(is_known && number > 0 && *end == 0, weft::str("WEFT_EMULATED_GPU=", text),
               "use memory=BYTES, architecture=NUMBER or fault=NUMBER");
  }
  bool is_broken() const { return fault_at > 0 && launches.load() >= fault_at; }
};
Faults& faults() {
  static Faults& only = *new Faults;
  return only;
}
cudaError_t state_of_device() { return faults().is_broken() ? cudaErrorIllegalAddress : cudaSuccess; }

// The device's memory: handed out from the front and never taken back, which is enough for tests.
struct Arena {
  static constexpr size_t kBytes = size_t{1} << 36, kPage = 4096;  // addresses, not memory
  std::mutex mutex;
  char* base = nullptr;
  size_t used = 0;
  int users = 0;

  void protect() {
    if (used > 0) mprotect(base, used, users > 0 ? PROT_READ | PROT_WRITE : PROT_NONE);
  }
};
Arena& arena() {
  static Arena& only = *new Arena;
  return only;
}
size_t memory_limit() { return faults().memory_bytes > 0 ? faults().memory_bytes : Arena::kBytes; }

}  // namespace

cudaError_t cudaMalloc(void** data, size_t bytes) {
  Arena& a = arena();
  std::lock_guard lock(a.mutex);
  if (!a.base) {
    void* memory = mmap(nullptr, Arena::kBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return cudaErrorMemoryAllocation;
    a.base = static_cast<char*>(memory);
  }
  size_t pages = (bytes + Arena::kPage - 1) / Arena::kPage * Arena::kPage;
  if (a.used + pages > memory_limit()) return cudaErrorMemoryAllocation;
  *data = a.base + a.used;
  a.used += pages;
  a.protect();
  return cudaSuccess;
}
cudaError_t cudaFree(void*) { return cudaSuccess; }
cudaError_t cudaMemsetAsync(void* data, int value, size_t bytes, cudaStream_t) {
  weft::cuda::DeviceAccess access;
  std::memset(data, value, bytes);
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) { return state_of_device(); }
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *total = memory_limit();
  *free = *total - arena().used;
  return cudaSuccess;
}
cudaError_t cudaGetLastError() { return cudaSuccess; }

namespace weft {

namespace cuda {

const void* device_memory() { return arena().base; }
size_t device_memory_capacity() { return Arena::kBytes; }

DeviceAccess::DeviceAccess() {
  Arena& a = arena();
  std::lock_guard lock(a.mutex);
  if (++a.users == 1) a.protect();
}
DeviceAccess::~DeviceAccess() {
  Arena& a = arena();
  std::lock_guard lock(a.mutex);
  if (--a.users == 0) a.protect();
}

void check(cudaError_t status, std::string_view what, std::source_location location) {
  if (status == cudaSuccess) return;
  if (status == cudaErrorMemoryAllocation)
    fail_call(what, "cudaErrorMemoryAllocation", "out of memory", false, location);
  fail_call(what, "cudaErrorIllegalAddress", "an illegal memory access was encountered", true, location);
}

cudaStream_t stream(int device) {
  WEFT_CHECK(device == 0, str("cuda:", device, ": there is one emulated GPU"), "use cuda:0");
  check_architecture(0, faults().architecture);
  return nullptr;
}
cudaStream_t stream_of(const Tensor& t) { return stream(t.device().index); }
void check_launch(std::string_view op, cudaStream_t, std::source_location location) {
  ++faults().launches;
  check(state_of_device(), op, location);
}

int num_multiprocessors(int) { return 2; }
int max_shared_bytes(int) { return 227 * 1024; }
int architecture(int) { return 90; }

void copy_bytes(void* to, const void* from, size_t bytes, Device to_device, Device from_device) {
  for (Device device : {to_device, from_device})
    if (device.is_cuda()) stream(device.index);
  if (bytes == 0 || is_dry_run()) return;
  DeviceAccess access;
  if (to_device.is_cpu()) count_device_wait();
  check(state_of_device(), to_device.is_cpu() ? "copy to the CPU" : from_device.is_cpu() ? "copy to a GPU" : "copy");
  std::memmove(to, from, bytes);
}
void copy_bytes_later(void* to, const void* from, size_t bytes, Device device) {
  stream(device.index);
  if (is_dry_run()) return;
  DeviceAccess access;
  check(state_of_device(), "copy to pinned memory");
  if (bytes > 0) std::memmove(to, from, bytes);
}

ScopeWatch* nvtx_watch() { return nullptr; }

}  // namespace cuda

void cuda_fill(Tensor& t, double value) {
  if (is_dry_run()) return;
  cuda::DeviceAccess access;
  with_type<float, BFloat16, double, int64_t, int32_t, uint8_t, bool>(t.dtype(), "full", [&](auto tag) {
    using T = typename decltype(tag)::type;
    T x;
    if constexpr (std::is_same_v<T, BFloat16>) x = BFloat16(static_cast<float>(value));
    else x = static_cast<T>(value);
    T* data = t.mutable_data<T>();
    for (int64_t i = 0; i < t.num_elements(); ++i) data[i] = x;
  });
}

int num_cuda_devices() { return 1; }
std::string cuda_problem() { return ""; }

CudaDeviceInfo cuda_device_info(int index) {
  WEFT_CHECK(index == 0, str("cuda:", index, ": there is one emulated GPU"), "use cuda:0");
  const int architecture = faults().architecture;
  return {.name = "emulated on the CPU",
          .major = architecture / 10,
          .minor = architecture % 10,
          .num_multiprocessors = 2,
          .memory_bytes = static_cast<int64_t>(memory_limit()),
          .free_bytes = static_cast<int64_t>(memory_limit() - arena().used),
          .problem = cuda::architecture_problem(architecture)};
}

void synchronize(Device device) {
  if (!device.is_cuda()) return;
  count_device_wait();
  cuda::stream(device.index);
  cuda::check(state_of_device(), "synchronize");
}

// As late as on a device that is slow: an event is reached when the CPU has waited for something after it, so that tests which count
// waits do not profit from an emulator that is never behind. `event_` holds how often the CPU had waited when it was recorded.
Event::Event(Device device, bool) : device_(device), event_(device.is_cuda() ? new int64_t(-1) : nullptr) {}
Event::~Event() { delete static_cast<int64_t*>(event_); }
void Event::record() {
  record_cpu();
  if (event_) *static_cast<int64_t*>(event_) = num_device_waits();
}
void Event::wait(Device) {}
bool Event::is_reached() const { return !event_ || *static_cast<int64_t*>(event_) < num_device_waits(); }
void Event::synchronize() {
  if (device_.is_cuda()) count_device_wait();
}
double Event::elapsed_ms(const Event& begin) const { return time_ms_ - begin.time_ms_; }

PinnedBuffer::PinnedBuffer(size_t bytes) : data_(::operator new(bytes)), bytes_(bytes) {}
PinnedBuffer::~PinnedBuffer() { ::operator delete(data_); }

void set_cuda_sync(bool) {}

}  // namespace weft
