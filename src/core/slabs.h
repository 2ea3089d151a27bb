// Huge pages for blocks that are smaller than one. An activation of a small model is 1 MiB: as 256 pages of its own it costs an entry of
// the TLB each, and in a virtual machine two walks. So such blocks are cut from slabs of whole huge pages.
// MemoryStats::reserved_bytes counts the blocks. The rest of a slab, of which nothing is cut, is not counted: it has no pages, except those
// of a huge page that a block shares.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory_resource>
#include <set>

namespace weft {

inline constexpr size_t kHugePage = size_t{2} << 20;

// Not locked: callers are.
class Slabs {
 public:
  static constexpr size_t kSlabBytes = 4 * kHugePage;

  // What is free and what is taken is noted in memory of `notes`.
  explicit Slabs(std::pmr::memory_resource* notes = std::pmr::new_delete_resource())
      : slabs_(notes), free_(notes), taken_(notes) {}
  ~Slabs();
  Slabs(const Slabs&) = delete;
  Slabs& operator=(const Slabs&) = delete;

  // `bytes` are a multiple of 64, less than a huge page. Null, and nothing has changed, where the system has no memory for another slab or
  // for a note.
  void* take(size_t bytes) noexcept;
  // False for what take() did not return, or somebody has given already. The whole pages go back to the system, and a slab as soon as
  // nothing of it is taken. Needs no memory: it is called when there is none.
  bool give(void* data) noexcept;
  size_t num_slabs() const { return slabs_.size(); }

 private:
  using Stretches = std::pmr::map<uintptr_t, size_t>;  // their bytes, by where they begin

  static uintptr_t slab_of(uintptr_t at) { return at / kSlabBytes * kSlabBytes; }
  bool add_slab();

  std::pmr::set<uintptr_t> slabs_;
  Stretches free_;   // two that touch are one, within a slab
  Stretches taken_;  // a note moves between the two, so that giving back needs no new one
};

}  // namespace weft
