// Memory of tensors: reference-counted Storage from a caching allocator per device, with statistics.
// The allocator keeps freed blocks together with their Storage and hands them out again. After the first steps of a training, no step asks
// the system for memory.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "weft/core/device.h"

namespace weft {

class Allocator;

// One block of memory, shared by all views of it. `version` counts writes: autograd reads it to notice that a saved tensor was changed.
struct Storage {
  std::atomic<int64_t> references{0};
  std::atomic<uint64_t> version{0};
  void* data = nullptr;
  size_t bytes = 0;     // asked for
  size_t capacity = 0;  // size of the block
  Device device;
  Allocator* owner = nullptr;        // nullptr: borrowed memory
  int tag = 0;                       // index into the allocator's tags
  bool is_guarded = false;           // it was handed out while set_memory_poison was on
  std::shared_ptr<void> keep_alive;  // of borrowed memory

  void retain() { references.fetch_add(1, std::memory_order_relaxed); }
  void release();  // gives the block back when the last view is gone
};

struct MemoryStats {
  struct Tag {
    std::string name;
    int64_t current_bytes = 0, peak_bytes = 0;
  };
  int64_t current_bytes = 0;           // in tensors that exist
  int64_t peak_bytes = 0;              // highest current since the start or reset_peak()
  int64_t reserved_bytes = 0;          // taken from the system: in tensors, or free and kept for reuse
  int64_t num_allocations = 0;         // calls served
  int64_t num_system_allocations = 0;  // calls that had to ask the system; after the first steps it does not grow
  int64_t num_guard_errors = 0;        // blocks freed with a broken guard behind them, see set_memory_poison
  std::vector<Tag> tags;               // by MemoryTag; untagged memory is "other"
};

class Allocator {
 public:
  virtual ~Allocator() = default;
  virtual Storage* allocate(
      size_t bytes) = 0;  // one reference, 64-byte aligned; Error with the sizes when memory is out
  virtual void release(Storage* storage) = 0;  // called by Storage::release
  virtual MemoryStats stats() const = 0;
  virtual void reset_peak() = 0;
  virtual void trim() = 0;  // returns cached blocks to the system
};

Allocator& allocator(Device device);
int64_t memory_bytes(Device device);  // all memory of the device, used or not

// Names the memory that this thread allocates during its lifetime ("parameters", "optimiser", "activations", ...).
class MemoryTag {
 public:
  explicit MemoryTag(const char* name);
  ~MemoryTag();
  MemoryTag(const MemoryTag&) = delete;
  MemoryTag& operator=(const MemoryTag&) = delete;
  static const char* current();

 private:
  const char* outer_;
};

// Test mode: new memory is filled with NaN patterns, and a guard behind each block is checked when it is freed
// (MemoryStats::num_guard_errors counts the broken ones).
void set_memory_poison(bool is_on);

}  // namespace weft
