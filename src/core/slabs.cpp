#include "src/core/slabs.h"

#include <sys/mman.h>

#include <iterator>

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
  void* room = mmap(nullptr, 2 * kSlabBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (room == MAP_FAILED) return false;
  const auto begin = reinterpret_cast<uintptr_t>(room), slab = round_up(begin, kSlabBytes), end = slab + kSlabBytes;
  if (slab > begin) munmap(room, slab - begin);
  if (begin + 2 * kSlabBytes > end) munmap(pointer(end), begin + 2 * kSlabBytes - end);
  madvise(pointer(slab), kSlabBytes, MADV_HUGEPAGE);
  slabs_.insert(slab);
  free_[slab] = kSlabBytes;
  return true;
}

void* Slabs::take(size_t bytes) {
  auto first_fit = [&] {
    auto place = free_.begin();
    while (place != free_.end() && place->second < bytes) ++place;
    return place;
  };
  auto place = first_fit();
  if (place == free_.end()) {
    if (!add_slab()) return nullptr;
    place = first_fit();
  }
  const auto [begin, length] = *place;
  free_.erase(place);
  if (length > bytes) free_[begin + bytes] = length - bytes;
  return pointer(begin);
}

bool Slabs::give(void* data, size_t bytes) {
  uintptr_t begin = reinterpret_cast<uintptr_t>(data), end = begin + bytes;
  const uintptr_t slab = slab_of(begin);
  if (!slabs_.contains(slab)) return false;
  const uintptr_t page = round_up(begin, kPage), last = end / kPage * kPage;
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
    free_[begin] = end - begin;
  } else {
    slabs_.erase(slab);
    munmap(pointer(slab), kSlabBytes);
  }
  return true;
}

}  // namespace weft
