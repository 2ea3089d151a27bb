// The caching allocator of one GPU. Blocks are ordered by stream: what a thread frees may be handed out again to the same
// thread at once, because its work runs in order; other threads get blocks of their own. A block that another thread frees, such as a
// message of a rank, goes back to its own thread with an event of the other one, which the next work on the block comes after. No CPU
// thread waits for that. Plain device memory, never managed.
#include <algorithm>
#include <array>
#include <map>
#include <memory>
#include <mutex>

#include "src/core/cuda/runtime.h"
#include "src/core/device_waits.h"
#include "src/core/memory_book.h"
#include "weft/core/stream.h"

namespace weft {

namespace {

constexpr int kGuard = 0xA5;

struct CudaStorage : Storage {
  cudaStream_t stream = nullptr;
  std::unique_ptr<Event> last_use = {};  // by another thread than the stream's, while the block is free
};
// Free blocks among which one is looked for that nobody uses any more.
constexpr ptrdiff_t kMostLooks = 8;

class CudaAllocator final : public Allocator {
 public:
  explicit CudaAllocator(int device) : device_(device) {}

  Storage* allocate(size_t bytes) override {
    cudaStream_t stream = cuda::stream(device_);
    bool is_guarded = is_memory_poisoned();
    WEFT_CHECK(bytes < (size_t{1} << 62), str("allocate: ", bytes, " bytes"), "use smaller sizes");
    size_t index = class_of_size(bytes + (is_guarded ? kGuardBytes : 0));
    {
      std::lock_guard lock(mutex_);
      book_.require_room(size_of_class(index), Device::cuda(device_));
    }
    CudaStorage* storage = take(stream, index);
    if (!storage) storage = from_system(stream, size_of_class(index));
    if (storage->last_use) wait_for_last_use(*storage);
    storage->bytes = bytes;
    storage->references.store(1, std::memory_order_relaxed);
    storage->version.store(0, std::memory_order_relaxed);
    storage->is_guarded = is_guarded;
    if (is_guarded) {
      cuda::check(cudaMemsetAsync(storage->data, 0xFF, bytes, stream), "poison memory");
      cuda::check(cudaMemsetAsync(static_cast<char*>(storage->data) + bytes, kGuard, kGuardBytes, stream), "guard");
    }
    std::lock_guard lock(mutex_);
    book_.allocated(storage);
    return storage;
  }

  void release(Storage* base) override {
    auto* storage = static_cast<CudaStorage*>(base);
    // After a fault of a kernel nothing can be asked, and the memory is as good as gone: this is a destructor, and somebody else has
    // the Error.
    bool is_broken = false;
    std::unique_ptr<Event> last_use;
    try {
      is_broken = storage->is_guarded && !guard_holds(*storage);
      if (cuda::stream(device_) != storage->stream) {
        last_use = spare_event();
        last_use->record();
      }
    } catch (const Error&) {}
    std::lock_guard lock(mutex_);
    storage->last_use = std::move(last_use);
    if (is_broken) book_.guard_broke();
    book_.released(storage);
    free_[{storage->stream, class_of_size(storage->capacity)}].push_back(storage);
  }

  MemoryStats stats() const override {
    std::lock_guard lock(mutex_);
    return book_.stats();
  }
  void reset_peak() override {
    std::lock_guard lock(mutex_);
    book_.reset_peak();
  }

  void trim() override {
    std::lock_guard lock(mutex_);
    cuda::stream(device_);
    for (auto& [key, list] : free_)
      for (; !list.empty(); list.pop_back()) {  // cudaFree waits for the device
        CudaStorage* storage = list.back();
        cuda::check(cudaFree(storage->data), "free memory");
        book_.given_to_system(storage->capacity);
        delete storage;
      }
    free_.clear();
  }

 private:
  CudaStorage* take(cudaStream_t stream, size_t index) {
    std::lock_guard lock(mutex_);
    auto list = free_.find({stream, index});
    if (list == free_.end() || list->second.empty()) return nullptr;
    std::vector<CudaStorage*>& blocks = list->second;
    const auto end = blocks.rbegin() + std::min(std::ssize(blocks), kMostLooks);
    const auto unused = std::find_if(blocks.rbegin(), end, [](const CudaStorage* storage) {
      return !storage->last_use || storage->last_use->is_reached();
    });
    if (unused != end) std::iter_swap(unused, blocks.rbegin());
    CudaStorage* storage = blocks.back();
    blocks.pop_back();
    return storage;
  }

  std::unique_ptr<Event> spare_event() {
    {
      std::lock_guard lock(mutex_);
      if (!spare_events_.empty()) {
        std::unique_ptr<Event> event = std::move(spare_events_.back());
        spare_events_.pop_back();
        return event;
      }
    }
    return std::make_unique<Event>(Device::cuda(device_));
  }
  // This thread's later work comes after it.
  void wait_for_last_use(CudaStorage& storage) {
    storage.last_use->wait();
    std::lock_guard lock(mutex_);
    spare_events_.push_back(std::move(storage.last_use));
  }

  CudaStorage* from_system(cudaStream_t stream, size_t capacity) {
    void* data = nullptr;
    cudaError_t status = cudaMalloc(&data, capacity);
    if (status == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      trim();
      status = cudaMalloc(&data, capacity);
    }
    if (status == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      MemoryStats now = stats();
      size_t free = 0, total = 0;
      cuda::check(cudaMemGetInfo(&free, &total), "free memory");
      fail(str("out of memory: ", capacity, " bytes asked for, ", now.current_bytes, " in live tensors, ",
               now.reserved_bytes, " reserved, ", free, " of ", total, " free, on cuda:", device_),
           "use a smaller batch or sequence, or train.recompute");
    }
    cuda::check(status, str("allocate ", capacity, " bytes"));
    auto* storage = new CudaStorage;
    storage->data = data;
    storage->capacity = capacity;
    storage->device = Device::cuda(device_);
    storage->owner = this;
    storage->stream = stream;
    std::lock_guard lock(mutex_);
    book_.taken_from_system(capacity);
    return storage;
  }

  bool guard_holds(const CudaStorage& storage) const {
    std::array<unsigned char, kGuardBytes> guard{};
    cuda::copy_bytes(guard.data(), static_cast<const char*>(storage.data) + storage.bytes, kGuardBytes, Device::cpu(),
                     storage.device);
    count_device_wait(-1);  // guards are for looking for bugs: programs run without
    return std::all_of(guard.begin(), guard.end(), [](unsigned char byte) { return byte == kGuard; });
  }

  const int device_;
  mutable std::mutex mutex_;
  std::map<std::pair<cudaStream_t, size_t>, std::vector<CudaStorage*>> free_;
  std::vector<std::unique_ptr<Event>> spare_events_;
  MemoryBook book_;
};

}  // namespace

Allocator& cuda_allocator(int index) {
  static std::mutex mutex;
  static std::map<int, CudaAllocator*>& all = *new std::map<int, CudaAllocator*>;  // never destroyed, like the CPU's
  cuda::stream(index);                                                             // Error without such a device
  std::lock_guard lock(mutex);
  CudaAllocator*& allocator = all[index];
  if (!allocator) allocator = new CudaAllocator(index);
  return *allocator;
}

}  // namespace weft
