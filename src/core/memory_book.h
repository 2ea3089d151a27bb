// What the allocators share: size classes, and the books of live and reserved memory by tag. Not locked: callers are.
#pragma once

#include <algorithm>
#include <bit>

#include "weft/core/allocator.h"

namespace weft {

inline constexpr size_t kMemoryAlignment = 64;
inline constexpr size_t kNumSizeClasses = 64 * 8;
inline constexpr size_t kGuardBytes = 64;  // behind a block, while memory is poisoned

// Class of a size and the block size of a class: 64, 128, ... 512 bytes, then 2^k * (8..15)/8.
inline size_t class_of_size(size_t bytes) {
  if (bytes <= 512) return (std::max<size_t>(bytes, 1) - 1) / kMemoryAlignment;
  size_t power = std::bit_width(bytes - 1) - 1;      // 2^power <= bytes-1 < 2^(power+1)
  size_t eighth = ((bytes - 1) >> (power - 3)) - 8;  // 0..7
  return 8 + (power - 9) * 8 + eighth;
}
inline size_t size_of_class(size_t index) {
  if (index < 8) return (index + 1) * kMemoryAlignment;
  size_t power = (index - 8) / 8 + 9, eighth = (index - 8) % 8;
  return (size_t{9} + eighth) << (power - 3);
}

class MemoryBook {
 public:
  void allocated(Storage* storage) {
    storage->tag = tag_index(MemoryTag::current());
    account(storage, static_cast<int64_t>(storage->capacity));
    ++stats_.num_allocations;
  }
  void released(const Storage* storage) { account(storage, -static_cast<int64_t>(storage->capacity)); }
  void taken_from_system(size_t bytes) {
    stats_.reserved_bytes += static_cast<int64_t>(bytes);
    ++stats_.num_system_allocations;
  }
  void given_to_system(size_t bytes) { stats_.reserved_bytes -= static_cast<int64_t>(bytes); }
  void guard_broke() { ++stats_.num_guard_errors; }
  void reset_peak() {
    stats_.peak_bytes = stats_.current_bytes;
    for (auto& tag : stats_.tags) tag.peak_bytes = tag.current_bytes;
  }
  const MemoryStats& stats() const { return stats_; }

 private:
  int tag_index(const char* name) {
    for (size_t i = 0; i < stats_.tags.size(); ++i)
      if (stats_.tags[i].name == name) return static_cast<int>(i);
    stats_.tags.push_back({name, 0, 0});
    return static_cast<int>(stats_.tags.size()) - 1;
  }
  void account(const Storage* storage, int64_t bytes) {
    auto& tag = stats_.tags[static_cast<size_t>(storage->tag)];
    tag.current_bytes += bytes;
    tag.peak_bytes = std::max(tag.peak_bytes, tag.current_bytes);
    stats_.current_bytes += bytes;
    stats_.peak_bytes = std::max(stats_.peak_bytes, stats_.current_bytes);
  }

  MemoryStats stats_;
};

bool is_memory_poisoned();  // set_memory_poison()

}  // namespace weft
