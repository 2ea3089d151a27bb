// The CPU's caching allocator. Blocks come in size classes (eight per doubling); freed blocks wait in a list per class
// together with their Storage. Blocks of 2 MiB and more begin at a huge page and are advised to use them; smaller ones are cut from slabs
// that are.
#include "weft/core/allocator.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>

#include "src/core/dry_allocator.h"
#include "src/core/memory_book.h"
#include "src/core/slabs.h"
#include "weft/core/dry_run.h"
#include "weft/core/error.h"
#include "weft/core/stream.h"

namespace weft {

namespace {

constexpr size_t kPage = 4096;
constexpr unsigned char kGuard = 0xA5;
#if defined(__SANITIZE_ADDRESS__)
constexpr bool kCaches = false;  // so that AddressSanitizer sees every free
#else
constexpr bool kCaches = true;
#endif

thread_local const char* tag_of_thread = "other";
thread_local int rank_of_thread = 0;
thread_local int64_t limit_of_thread[2] = {kNoLimit, kNoLimit};  // on the CPU, on a GPU
std::atomic<bool> is_poisoning{false};

class CpuAllocator final : public Allocator {
 public:
  Storage* allocate(size_t bytes) override {
    bool is_guarded = is_memory_poisoned();
    WEFT_CHECK(bytes < (size_t{1} << 62), str("allocate: ", bytes, " bytes"), "use smaller sizes");
    size_t index = class_of_size(bytes + (is_guarded ? kGuardBytes : 0));
    Storage* storage = nullptr;
    {
      std::lock_guard lock(mutex_);
      book_.require_room(size_of_class(index), Device::cpu());
      if (!free_[index].empty()) {
        storage = free_[index].back();
        free_[index].pop_back();
      }
    }
    if (!storage) storage = from_system(size_of_class(index));
    storage->bytes = bytes;
    storage->references.store(1, std::memory_order_relaxed);
    storage->version.store(0, std::memory_order_relaxed);
    storage->is_guarded = is_guarded;
    if (is_guarded) {
      std::memset(storage->data, 0xFF, bytes);
      std::memset(static_cast<char*>(storage->data) + bytes, kGuard, kGuardBytes);
    }
    std::lock_guard lock(mutex_);
    book_.allocated(storage);
    return storage;
  }

  void release(Storage* storage) override {
    bool is_broken = storage->is_guarded && !guard_holds(storage);
    std::lock_guard lock(mutex_);
    if (is_broken) book_.guard_broke();
    book_.released(storage);
    if constexpr (kCaches) {
      try {
        free_[class_of_size(storage->capacity)].push_back(storage);
        return;
      } catch (const std::bad_alloc&) {}  // no memory for a longer list: the block is memory
    }
    to_system(storage);
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
    for (auto& list : free_)
      while (!list.empty()) {
        Storage* storage = list.back();
        list.pop_back();
        to_system(storage);
      }
  }

 private:
  Storage* from_system(size_t capacity) {
    auto storage = std::make_unique<Storage>();
    const size_t alignment = capacity >= kHugePage ? kHugePage : kMemoryAlignment;
    auto attempt = [&] {  // not aligned_alloc, which would round the size up to whole huge pages
      void* memory = nullptr;
      if (kCaches && capacity < kHugePage) {
        std::lock_guard lock(mutex_);
        memory = slabs_.take(capacity);
        if (memory) return memory;
      }
      return posix_memalign(&memory, alignment, capacity) == 0 ? memory : nullptr;
    };
    void* data = attempt();
    if (!data) {
      trim();
      data = attempt();
    }
    if (!data) {
      MemoryStats now = stats();
      fail(str("out of memory: ", capacity, " bytes asked for, ", now.current_bytes, " in live tensors, ",
               now.reserved_bytes, " reserved, on cpu"),
           "use a smaller batch or sequence, or train.recompute");
    }
    if (alignment == kHugePage) madvise(data, capacity / kPage * kPage, MADV_HUGEPAGE);
    storage->data = data;
    storage->capacity = capacity;
    storage->owner = this;
    std::lock_guard lock(mutex_);
    book_.taken_from_system(capacity);
    return storage.release();
  }

  void to_system(Storage* storage) noexcept {  // under mutex_
    book_.given_to_system(storage->capacity);
    if (!slabs_.give(storage->data)) std::free(storage->data);
    delete storage;
  }

  static bool guard_holds(const Storage* storage) {
    const auto* guard = static_cast<const unsigned char*>(storage->data) + storage->bytes;
    return std::all_of(guard, guard + kGuardBytes, [](unsigned char byte) { return byte == kGuard; });
  }

  mutable std::mutex mutex_;
  std::array<std::vector<Storage*>, kNumSizeClasses> free_;
  Slabs slabs_;
  MemoryBook book_;
};

}  // namespace

int memory_rank() { return rank_of_thread; }
void set_memory_rank(int rank) { rank_of_thread = rank; }
int64_t& memory_limit(bool is_of_gpu) { return limit_of_thread[is_of_gpu ? 1 : 0]; }

void Storage::release() {
  if (references.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  if (owner) owner->release(this);
  else delete this;
}

#ifdef WEFT_WITH_CUDA
Allocator& cuda_allocator(int index);  // src/core/cuda/allocator.cpp
#endif

Allocator& allocator(Device device) {
  if (is_dry_run()) [[unlikely]]
    return dry_allocator(device);
  static CpuAllocator& cpu = *new CpuAllocator;  // never destroyed: tensors in static storage may outlive it
#ifdef WEFT_WITH_CUDA
  if (device.is_cuda()) return cuda_allocator(device.index);
#endif
  WEFT_CHECK(device.is_cpu(), str("memory on ", device, ": this build has no CUDA"), "use Device::cpu()");
  return cpu;
}

MemoryTag::MemoryTag(const char* name) : outer_(tag_of_thread) { tag_of_thread = name; }
MemoryTag::~MemoryTag() { tag_of_thread = outer_; }
const char* MemoryTag::current() { return tag_of_thread; }

void set_memory_poison(bool is_on) { is_poisoning.store(is_on); }
bool is_memory_poisoned() { return is_poisoning.load(std::memory_order_relaxed); }

int64_t memory_bytes(Device device) {
  if (device.is_cuda()) return cuda_device_info(device.index).memory_bytes;
  return int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGESIZE);
}

}  // namespace weft
