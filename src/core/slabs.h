// Huge pages for blocks that are smaller than one. An activation of a small model is 1 MiB: as 256 pages of its own it costs an entry of
// the TLB each, and in a virtual machine two walks. So such blocks are cut from slabs of whole huge pages.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <set>

namespace weft {

inline constexpr size_t kHugePage = size_t{2} << 20;

// Not locked: callers are.
class Slabs {
 public:
  static constexpr size_t kSlabBytes = 4 * kHugePage;

  Slabs() = default;
  ~Slabs();
  Slabs(const Slabs&) = delete;
  Slabs& operator=(const Slabs&) = delete;

  // `bytes` are a multiple of 64, less than a huge page. Null where the system has no memory for another slab.
  void* take(size_t bytes);
  // False for memory that is none of theirs. Its whole pages go back to the system, and a slab as soon as nothing of it is taken.
  bool give(void* data, size_t bytes);
  size_t num_slabs() const { return slabs_.size(); }

 private:
  static uintptr_t slab_of(uintptr_t at) { return at / kSlabBytes * kSlabBytes; }
  bool add_slab();

  std::set<uintptr_t> slabs_;
  std::map<uintptr_t, size_t> free_;  // stretches of slabs by where they begin; two that touch are one, within a slab
};

}  // namespace weft
