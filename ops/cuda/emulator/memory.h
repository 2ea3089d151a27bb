// What the emulator watches of a kernel's memory: races, shared memory that is read before anybody wrote it, and asynchronous
// copies, whose bytes arrive only when they are waited for. Kernel files are compiled with -fsanitize=thread, whose calls at
// every load and store come to memory.cpp instead of ThreadSanitizer's library.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace weft::cuda::emulator {

// Where a thread is when it reads or writes. Two accesses of one launch are in order if one thread made both, or a barrier of their
// block lies between, or they are of one warp and a __syncwarp does, or a barrier in shared memory says so: what a warp did before
// its last __syncwarp before an arrival is in the past of whoever has waited for that. Functions that only exchange values order
// nothing.
struct Place {
  int thread = 0;
  uint32_t sync = 0;               // of the thread's warp: its number of __syncwarp so far
  const uint32_t* seen = nullptr;  // of every warp: accesses before its number seen[warp] are in the past
};

class MemoryWatch {
 public:
  MemoryWatch();
  ~MemoryWatch();
  MemoryWatch(const MemoryWatch&) = delete;
  MemoryWatch& operator=(const MemoryWatch&) = delete;

  void begin_launch() { first_of_launch_ = ++epoch_; }
  void begin_block(const void* shared, size_t shared_bytes);
  void barrier() { ++epoch_; }  // all threads of the block have come
  void use_clocks();            // until the block's end, reads of shared memory are kept for every warp

  // Whether it is right; if not, take_problem() says what is wrong. They run at every load and store.
  bool read(const Place& who, uintptr_t at, size_t bytes);
  bool write(const Place& who, uintptr_t at, size_t bytes, bool is_atomic);
  std::string take_problem() { return std::move(problem_); }

 private:
  // Of two bytes: the last write, and the reads of the last epoch that had any. Epochs number the stretches between barriers
  // over all blocks and launches, so that nothing has to be cleared.
  struct Record {
    uint32_t write_epoch, write_sync;
    uint32_t read_epoch, read_sync, read_lanes;  // lanes of read_warp since its last __syncwarp
    uint32_t far_read_epoch;                     // a read by another block, if the launch is this one
    uint16_t writer;
    uint8_t is_write_atomic, read_warp;
    uint8_t is_read_by_warps;  // by others than read_warp too
  };
  static constexpr size_t kUnit = 2;
  static constexpr uint16_t kSeveral = 0xffff;  // threads, by atomic steps

  struct Memory {
    const char* name = "";
    Record* records = nullptr;  // of its first unit
    uint32_t first_epoch = 0;   // before it nothing matters: of the launch, or of the block for shared memory
  };
  Memory find(uintptr_t at, size_t bytes) const;
  // A warp's last read of two bytes of shared memory.
  struct WarpRead {
    uint32_t epoch, sync;
  };
  static constexpr int kMostWarps = 32;
  WarpRead* reads_of(uintptr_t at) const;                               // one per warp, or null
  int unordered_reader(const Place& who, const WarpRead* reads) const;  // a warp, or -1

  bool is_unordered(const Place& who, uint32_t first, uint32_t epoch, uint32_t sync, int thread) const;
  bool refuse(std::string problem);
  bool refuse_race(const Place& who, const char* does, const Memory& memory, size_t bytes, const char* did,
                   uint32_t epoch, int thread);

  uint32_t epoch_ = 1, first_of_launch_ = 1, first_of_block_ = 1;
  uintptr_t device_ = 0, dynamic_ = 0, static_ = 0;
  size_t device_bytes_ = 0, dynamic_bytes_ = 0, static_bytes_ = 0;
  Record *shared_records_ = nullptr, *static_records_ = nullptr, *device_records_ = nullptr;
  WarpRead* warp_reads_ = nullptr;
  bool has_clocks_ = false;
  std::string problem_;
};

// Copies of one thread that are under way, in the order they were asked for.
class Copies {
 public:
  void start(void* to, const void* from, int bytes, bool is_valid) {
    all_.push_back({to, from, bytes, is_valid, groups_});
  }
  void commit() { ++groups_; }
  // Calls done(to, from or null, bytes) for every copy that must be there when `pending` groups may still be under way.
  template <class F>
  void wait(int pending, F&& done) {
    size_t count = 0;
    while (count < all_.size() && all_[count].group + pending < groups_) ++count;
    for (size_t i = 0; i < count; ++i) done(all_[i].to, all_[i].is_valid ? all_[i].from : nullptr, all_[i].bytes);
    all_.erase(all_.begin(), all_.begin() + static_cast<std::ptrdiff_t>(count));
  }

 private:
  struct Copy {
    void* to;
    const void* from;
    int bytes;
    bool is_valid;
    int group;
  };
  std::vector<Copy> all_;
  int groups_ = 0;
};

// What the instrumented code calls, for the thread that runs now; nothing outside of kernels.
void on_read(const volatile void* at, size_t bytes);
void on_write(const volatile void* at, size_t bytes, bool is_atomic = false);

}  // namespace weft::cuda::emulator
