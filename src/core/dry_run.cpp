// The allocator of dry runs: blocks of a range of addresses that the system backs with zero pages only where somebody writes. Sizes and
// reuse are those of the real allocators, and so are the books.
#include "weft/core/dry_run.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <vector>

#include "src/core/dry_allocator.h"
#include "src/core/memory_book.h"
#include "weft/core/error.h"

namespace weft {

namespace {

constexpr size_t kPage = 4096;

class DryAllocator final : public Allocator {
 public:
  explicit DryAllocator(Device device) : device_(device) {
    // Address space is all that it takes; less of it where that is limited (ulimit -v).
    for (capacity_ = size_t{1} << 45; capacity_ >= size_t{1} << 30; capacity_ /= 2) {
      void* range =
          mmap(nullptr, capacity_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (range == MAP_FAILED) continue;
      range_ = static_cast<char*>(range);
      return;
    }
    fail("dry run: no addresses for the tensors of a dry run", "raise the limit of the address space (ulimit -v)");
  }
  ~DryAllocator() override {
    for (auto& list : free_)
      for (Storage* storage : list) delete storage;
    munmap(range_, capacity_);
  }
  DryAllocator(const DryAllocator&) = delete;
  DryAllocator& operator=(const DryAllocator&) = delete;

  Storage* allocate(size_t bytes) override {
    const bool is_guarded = is_memory_poisoned();  // blocks are as large as real ones
    WEFT_CHECK(bytes < capacity_, str("dry run: ", bytes, " bytes"), "use smaller sizes");
    const size_t index = class_of_size(bytes + (is_guarded ? kGuardBytes : 0));
    Storage* storage = free_[index].empty() ? from_range(size_of_class(index)) : from_list(free_[index]);
    storage->bytes = bytes;
    storage->references.store(1, std::memory_order_relaxed);
    storage->version.store(0, std::memory_order_relaxed);
    book_.allocated(storage);
    return storage;
  }

  void release(Storage* storage) override {
    book_.released(storage);
    free_[class_of_size(storage->capacity)].push_back(storage);
  }

  MemoryStats stats() const override { return book_.stats(); }
  void reset_peak() override { book_.reset_peak(); }
  void trim() override {}  // a run does not trim between its steps

  // dry_peak_bytes(). f has blocks that are free and new ones, which are given back: a second range would need as many addresses again.
  int64_t peak_of(const std::function<void()>& f) {
    struct Back {
      DryAllocator& own;
      const MemoryBook book = own.book_;
      const size_t used = own.used_, num_blocks = own.num_blocks_;
      ~Back() {
        own.give_up_blocks(used, num_blocks);
        own.book_.forget_since(book);
      }
    } const back{*this};
    book_.reset_peak();
    const int64_t before = book_.stats().current_bytes;
    f();
    return book_.stats().peak_bytes - before;
  }

 private:
  // Makes the blocks and addresses those of the time when so many were used, unless a tensor still has one of the later blocks.
  void give_up_blocks(size_t used, size_t num_blocks) {
    auto is_later = [&](const Storage* storage) { return static_cast<char*>(storage->data) >= range_ + used; };
    size_t num_later = 0;
    for (const auto& list : free_) num_later += static_cast<size_t>(std::count_if(list.begin(), list.end(), is_later));
    if (num_later != num_blocks_ - num_blocks) return;
    for (auto& list : free_)
      std::erase_if(list, [&](Storage* storage) {
        if (!is_later(storage)) return false;
        book_.given_to_system(storage->capacity);
        delete storage;
        return true;
      });
    make_zeros(range_ + used, used_ - used);
    used_ = used, num_blocks_ = num_blocks;
  }

  Storage* from_range(size_t capacity) {
    const size_t begin = capacity < kPage ? used_ : (used_ + kPage - 1) / kPage * kPage;
    WEFT_CHECK(
        begin + capacity <= capacity_,
        str("dry run: ", capacity, " bytes asked for, ", used_, " in use, and there are addresses for ", capacity_),
        "use a smaller batch, sequence or model");
    used_ = begin + capacity;
    auto* storage = new Storage;
    ++num_blocks_;
    storage->data = range_ + begin;
    storage->capacity = capacity;
    storage->device = device_;
    storage->owner = this;
    book_.taken_from_system(capacity);
    return storage;
  }

  static Storage* from_list(std::vector<Storage*>& list) {
    Storage* storage = list.back();
    list.pop_back();
    make_zeros(static_cast<char*>(storage->data), storage->capacity);
    return storage;
  }

  // Zeros again, where the block was written: somebody may read it as indices.
  static void make_zeros(char* begin, size_t bytes) {
    char* const end = begin + bytes;
    auto in_page = [](char* at) { return reinterpret_cast<uintptr_t>(at) % kPage; };
    // madvise() takes whole pages: others may have the rest of the first and the last.
    char* const first = begin + std::min(bytes, (kPage - in_page(begin)) % kPage);
    char* const last = std::max(first, end - in_page(end));
    std::memset(begin, 0, static_cast<size_t>(first - begin));
    if (first < last) madvise(first, static_cast<size_t>(last - first), MADV_DONTNEED);
    std::memset(last, 0, static_cast<size_t>(end - last));
  }

  const Device device_;
  char* range_ = nullptr;
  size_t capacity_ = 0, used_ = 0, num_blocks_ = 0;
  std::array<std::vector<Storage*>, kNumSizeClasses> free_;
  MemoryBook book_;
};

struct Run {
  std::array<std::unique_ptr<DryAllocator>, 2> of;  // the CPU's, and one for a GPU
};
thread_local Run* run_of_thread = nullptr;

}  // namespace

bool is_dry_run() { return run_of_thread != nullptr; }

Allocator& dry_allocator(Device device) {
  auto& allocator = run_of_thread->of[device.is_cuda() ? 1 : 0];
  if (!allocator) allocator = std::make_unique<DryAllocator>(device);
  return *allocator;
}

int64_t dry_peak_bytes(const std::function<void()>& f) {
  return static_cast<DryAllocator&>(dry_allocator(Device::cpu())).peak_of(f);
}

DryRun::DryRun() {
  WEFT_CHECK(!is_dry_run(), "dry run: inside another", "end the first one");
  run_of_thread = new Run;
}
DryRun::~DryRun() {
  delete run_of_thread;
  run_of_thread = nullptr;
}

MemoryStats DryRun::memory(Device device) const { return dry_allocator(device).stats(); }

}  // namespace weft
