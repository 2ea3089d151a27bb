#include "src/core/slabs.h"

#include <sys/mman.h>

#include <iterator>
#include <new>
#include <utility>

namespace weft {

namespace {

constexpr size_t kPage = 4096;

uintptr_t round_up(uintptr_t at, size_t step) { return (at + step - 1) / step * step; }
void* pointer(uintptr_t at) { return reinterpret_cast<void*>(at); }

}  // namespace

Slabs::~Slabs() {
  for (uintptr_t slab : slabs_) munmap(pointer(slab), kSlabBytes);
}

// A slab begins at a multiple of its size, so that an address tells the slab: twice the memory has one, and the rest is given back.
bool Slabs::add_slab() {
  decltype(slabs_) slab_notes({0}, slabs_.get_allocator());  // first, as nothing else here throws
  Stretches room_notes({{0, kSlabBytes}}, free_.get_allocator());
  void* room = mmap(nullptr, 2 * kSlabBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (room == MAP_FAILED) return false;
  const auto begin = reinterpret_cast<uintptr_t>(room), slab = round_up(begin, kSlabBytes), end = slab + kSlabBytes;
  if (slab > begin) munmap(room, slab - begin);
  if (begin + 2 * kSlabBytes > end) munmap(pointer(end), begin + 2 * kSlabBytes - end);
  madvise(pointer(slab), kSlabBytes, MADV_HUGEPAGE);
  auto slab_note = slab_notes.extract(slab_notes.begin());
  slab_note.value() = slab;
  slabs_.insert(std::move(slab_note));
  auto room_note = room_notes.extract(room_notes.begin());
  room_note.key() = slab;
  free_.insert(std::move(room_note));
  return true;
}

void* Slabs::take(size_t bytes) noexcept try {
  auto first_fit = [&] {
    auto place = free_.begin();
    while (place != free_.end() && place->second < bytes) ++place;
    return place;
  };
  Stretches notes({{0, bytes}}, taken_.get_allocator());  // what throws comes before what changes
  auto place = first_fit();
  if (place == free_.end()) {
    if (!add_slab()) return nullptr;
    place = first_fit();
  }
  auto rest = free_.extract(place);
  const uintptr_t begin = rest.key();
  rest.key() += bytes;
  rest.mapped() -= bytes;
  if (rest.mapped() > 0) free_.insert(std::move(rest));
  auto note = notes.extract(notes.begin());
  note.key() = begin;
  taken_.insert(std::move(note));
  return pointer(begin);
} catch (const std::bad_alloc&) { return nullptr; }

bool Slabs::give(void* data) noexcept {
  auto note = taken_.extract(reinterpret_cast<uintptr_t>(data));
  if (note.empty()) return false;
  uintptr_t begin = note.key(), end = begin + note.mapped();
  const uintptr_t slab = slab_of(begin), page = round_up(begin, kPage), last = end / kPage * kPage;
  if (page < last) madvise(pointer(page), last - page, MADV_DONTNEED);
  auto behind = free_.lower_bound(begin);
  if (behind != free_.end() && behind->first == end && slab_of(end) == slab) {
    end += behind->second;
    behind = free_.erase(behind);
  }
  if (behind != free_.begin()) {
    const auto before = std::prev(behind);
    if (before->first + before->second == begin && slab_of(before->first) == slab) {
      begin = before->first;
      free_.erase(before);
    }
  }
  if (end - begin < kSlabBytes) {
    note.key() = begin;
    note.mapped() = end - begin;
    free_.insert(std::move(note));
  } else {
    slabs_.erase(slab);
    munmap(pointer(slab), kSlabBytes);
  }
  return true;
}

}  // namespace weft
