// What the allocators share: size classes, and the books of live and reserved memory by tag and by rank. Not locked: callers are.
#pragma once

#include <algorithm>
#include <bit>

#include "src/core/rank_memory.h"
#include "weft/core/allocator.h"
#include "weft/core/error.h"

namespace weft {

inline constexpr size_t kMemoryAlignment = 64;
inline constexpr size_t kNumSizeClasses = 64 * 8;
inline constexpr size_t kGuardBytes = 64;  // behind a block, while memory is poisoned
inline constexpr int64_t kNoLimit = INT64_MAX;

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
  // Error if this rank has a limit (MemoryLimit) that another block would pass.
  void require_room(size_t capacity, Device device) const {
    const int64_t limit = memory_limit(device.is_cuda()), more = static_cast<int64_t>(capacity);
    if (limit == kNoLimit) return;
    const int64_t own = own_bytes();
    WEFT_CHECK(
        more <= limit && own <= limit - more,
        str("out of memory: ", capacity, " bytes asked for, ", own, " in live tensors of this rank, which may have ",
            limit, " on ", device),
        "use a smaller batch or sequence, more ranks per sequence (parallel.context), train.recompute, or a higher "
        "limit (train.memory_gib)");
  }
  // Storage::tag holds the tag and the rank that made it: whoever frees it, that rank's books shrink.
  void allocated(Storage* storage) {
    const int rank = memory_rank();
    storage->tag = rank * kTags + tag_index(MemoryTag::current());
    account(storage, static_cast<int64_t>(storage->capacity));
    ++whole_.num_allocations;
    if (rank > 0) ++of(rank).num_allocations;
  }
  void released(const Storage* storage) { account(storage, -static_cast<int64_t>(storage->capacity)); }
  void taken_from_system(size_t bytes) {
    whole_.reserved_bytes += static_cast<int64_t>(bytes);
    ++whole_.num_system_allocations;
  }
  void given_to_system(size_t bytes) { whole_.reserved_bytes -= static_cast<int64_t>(bytes); }
  void guard_broke() { ++whole_.num_guard_errors; }

  // Of the rank of this thread. What came from the system is the whole process's.
  MemoryStats stats() const {
    const auto rank = static_cast<size_t>(memory_rank());
    if (rank == 0) return whole_;
    MemoryStats stats = rank <= ranks_.size() ? ranks_[rank - 1] : MemoryStats{};
    stats.reserved_bytes = whole_.reserved_bytes;
    stats.num_system_allocations = whole_.num_system_allocations;
    stats.num_guard_errors = whole_.num_guard_errors;
    for (size_t i = 0; i < stats.tags.size(); ++i) stats.tags[i].name = whole_.tags[i].name;
    return stats;
  }
  void reset_peak() {
    MemoryStats& stats = memory_rank() == 0 ? whole_ : of(memory_rank());
    stats.peak_bytes = stats.current_bytes;
    for (auto& tag : stats.tags) tag.peak_bytes = tag.current_bytes;
  }
  // Peaks and counts of calls are again those of `before`, a copy of this book: what came since was only measured.
  void forget_since(const MemoryBook& before) {
    forget_since(whole_, before.whole_);
    const MemoryStats none;
    for (size_t i = 0; i < ranks_.size(); ++i)
      forget_since(ranks_[i], i < before.ranks_.size() ? before.ranks_[i] : none);
  }

 private:
  static constexpr int kTags = 1 << 10;  // names of tags are few

  // Of tensors that this rank has made; of a thread of no rank, those that no rank has made.
  int64_t own_bytes() const {
    const auto rank = static_cast<size_t>(memory_rank());
    if (rank > 0) return rank <= ranks_.size() ? ranks_[rank - 1].current_bytes : 0;
    int64_t own = whole_.current_bytes;
    for (const MemoryStats& of_rank : ranks_) own -= of_rank.current_bytes;
    return own;
  }

  int tag_index(const char* name) {
    for (size_t i = 0; i < whole_.tags.size(); ++i)
      if (whole_.tags[i].name == name) return static_cast<int>(i);
    whole_.tags.push_back({name, 0, 0});
    return static_cast<int>(whole_.tags.size()) - 1;
  }
  MemoryStats& of(int rank) {
    if (ranks_.size() < static_cast<size_t>(rank)) ranks_.resize(static_cast<size_t>(rank));
    return ranks_[static_cast<size_t>(rank) - 1];
  }
  void account(const Storage* storage, int64_t bytes) {
    const auto tag = static_cast<size_t>(storage->tag % kTags);
    const int rank = storage->tag / kTags;
    add(whole_, tag, bytes);
    if (rank > 0) add(of(rank), tag, bytes);
  }
  static void forget_since(MemoryStats& stats, const MemoryStats& before) {
    stats.num_allocations = before.num_allocations;
    stats.num_system_allocations = before.num_system_allocations;
    stats.peak_bytes = std::max(before.peak_bytes, stats.current_bytes);
    for (size_t i = 0; i < stats.tags.size(); ++i) {
      auto& tag = stats.tags[i];
      tag.peak_bytes = std::max(i < before.tags.size() ? before.tags[i].peak_bytes : 0, tag.current_bytes);
    }
  }
  static void add(MemoryStats& stats, size_t index, int64_t bytes) {
    if (stats.tags.size() <= index) stats.tags.resize(index + 1);
    auto& tag = stats.tags[index];
    tag.current_bytes += bytes;
    tag.peak_bytes = std::max(tag.peak_bytes, tag.current_bytes);
    stats.current_bytes += bytes;
    stats.peak_bytes = std::max(stats.peak_bytes, stats.current_bytes);
  }

  MemoryStats whole_;
  std::vector<MemoryStats> ranks_;
};

bool is_memory_poisoned();  // set_memory_poison()

}  // namespace weft
