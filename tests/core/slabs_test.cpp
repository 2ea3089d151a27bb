// Slabs of huge pages, and the allocator that cuts small blocks from them.
#include "src/core/slabs.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <memory_resource>
#include <new>
#include <utility>
#include <vector>

#include "weft/core/allocator.h"
#include "weft/core/rng.h"
#include "weft/core/tensor.h"

namespace weft {
namespace {

constexpr size_t kMiB = size_t{1} << 20;

TEST(Slabs, CutBlocksThatAreAlignedAndApart) {
  Slabs slabs;
  std::map<char*, size_t> blocks;
  for (uint64_t i = 0; i < 200; ++i) {
    const size_t bytes = 64 * (1 + Rng(3).below(kHugePage / 64 - 1, i));
    auto* block = static_cast<char*>(slabs.take(bytes));
    ASSERT_NE(block, nullptr);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(block) % 64, 0U);
    std::memset(block, static_cast<int>(i), bytes);  // may be written
    blocks[block] = bytes;
  }
  const char* end = nullptr;
  for (auto [block, bytes] : blocks) {
    EXPECT_GE(block, end);
    end = block + bytes;
  }
  for (auto [block, bytes] : blocks) EXPECT_TRUE(slabs.give(block));
  EXPECT_EQ(slabs.num_slabs(), 0U);
}

TEST(Slabs, FillTheRoomThatIsThereFirst) {
  Slabs slabs;
  std::vector<void*> blocks;
  for (size_t i = 0; i < Slabs::kSlabBytes / kMiB; ++i) blocks.push_back(slabs.take(kMiB));
  EXPECT_EQ(slabs.num_slabs(), 1U);
  // Neighbours that are given back are one stretch, in whatever order.
  EXPECT_TRUE(slabs.give(blocks[3]));
  EXPECT_TRUE(slabs.give(blocks[1]));
  EXPECT_TRUE(slabs.give(blocks[2]));
  EXPECT_EQ(slabs.take(kMiB + kMiB / 2), blocks[1]);
  EXPECT_EQ(slabs.take(kMiB + kMiB / 2), static_cast<char*>(blocks[2]) + kMiB / 2);
  EXPECT_EQ(slabs.num_slabs(), 1U);
  slabs.take(64);
  EXPECT_EQ(slabs.num_slabs(), 2U);
}

TEST(Slabs, GiveTheirPagesToTheSystem) {
  Slabs slabs;
  void* kept = slabs.take(kMiB);
  auto* block = static_cast<char*>(slabs.take(kMiB));
  std::memset(block, 7, kMiB);
  EXPECT_TRUE(slabs.give(block));
  EXPECT_EQ(slabs.take(kMiB), block);
  EXPECT_EQ(block[kMiB / 2], 0);  // a new page
  EXPECT_TRUE(slabs.give(block));
  EXPECT_TRUE(slabs.give(kept));
}

TEST(Slabs, KnowWhatIsNotTheirs) {
  Slabs slabs;
  std::vector<char> other(kMiB);
  EXPECT_FALSE(slabs.give(other.data()));
  void* block = slabs.take(128);
  EXPECT_FALSE(slabs.give(other.data()));
  EXPECT_FALSE(slabs.give(static_cast<char*>(block) + 64)) << "not where a block begins";
  EXPECT_TRUE(slabs.give(block));
  EXPECT_FALSE(slabs.give(block)) << "it has been given";
}

// Memory for notes, of which only so many pieces are left.
class ScarceNotes final : public std::pmr::memory_resource {
 public:
  int num_left = 1 << 20;
  int num_out = 0;

 private:
  void* do_allocate(size_t bytes, size_t alignment) override {
    if (num_left == 0) throw std::bad_alloc();
    --num_left, ++num_out;
    return std::pmr::new_delete_resource()->allocate(bytes, alignment);
  }
  void do_deallocate(void* data, size_t bytes, size_t alignment) override {
    --num_out;
    std::pmr::new_delete_resource()->deallocate(data, bytes, alignment);
  }
  bool do_is_equal(const memory_resource& other) const noexcept override { return this == &other; }
};

// They give memory back just when there is none, also for their own books.
TEST(Slabs, GiveBackWithoutMemoryForNotes) {
  ScarceNotes notes;
  {
    Slabs slabs(&notes);
    std::vector<void*> blocks;
    for (size_t i = 0; i < 3 * Slabs::kSlabBytes / (kMiB / 2); ++i) blocks.push_back(slabs.take(kMiB / 2));
    EXPECT_EQ(slabs.num_slabs(), 3U);
    notes.num_left = 0;
    for (size_t step : {2, 1})  // first none that touch: a stretch for each
      for (size_t i = 0; i < blocks.size(); i += step)
        if (void* block = std::exchange(blocks[i], nullptr)) { EXPECT_TRUE(slabs.give(block)); }
    EXPECT_EQ(slabs.num_slabs(), 0U) << "every stretch was listed";
  }
  EXPECT_EQ(notes.num_out, 0);
}

TEST(Slabs, LoseNothingWhereTheyCannotTake) {
  ScarceNotes notes;
  Slabs slabs(&notes);
  for (int num = 0;; ++num) {  // no note, then one, ... until there are enough for a slab
    ASSERT_LT(num, 10);
    notes.num_left = num;
    if (slabs.take(kMiB) != nullptr) break;
    EXPECT_EQ(slabs.num_slabs(), 0U);
    EXPECT_EQ(notes.num_out, 0);
  }
  EXPECT_EQ(slabs.num_slabs(), 1U);
  notes.num_left = 0;
  EXPECT_EQ(slabs.take(kMiB), nullptr);
  EXPECT_EQ(slabs.take(Slabs::kSlabBytes - kMiB), nullptr) << "all that is left";
  notes.num_left = 1;
  EXPECT_NE(slabs.take(Slabs::kSlabBytes - kMiB), nullptr);
  EXPECT_EQ(slabs.num_slabs(), 1U);
}

#if !defined(__SANITIZE_ADDRESS__)  // with it every free is the sanitizer's at once, and nothing is cut from slabs

enum class Pages { kUnmapped, kNone, kSome };  // of a block: its slab is gone, they are given back, they are there

Pages pages_of(char* block, size_t bytes) {
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  char* const begin = block + (page - reinterpret_cast<uintptr_t>(block) % page) % page;
  const size_t num = static_cast<size_t>(block + bytes - begin) / page;
  std::vector<unsigned char> is_there(num);
  if (mincore(begin, num * page, is_there.data()) != 0) return Pages::kUnmapped;
  return std::any_of(is_there.begin(), is_there.end(), [](unsigned char there) { return there & 1; }) ? Pages::kSome
                                                                                                      : Pages::kNone;
}

TEST(Allocator, TrimGivesBackSmallBlocksBetweenThoseInUse) {
  Allocator& cpu = allocator(Device::cpu());
  cpu.trim();
  const MemoryStats before = cpu.stats();
  constexpr size_t kBytes = kMiB - 64;
  std::vector<Tensor> kept, dropped;
  std::vector<char*> blocks;
  for (int i = 0; i < 40; ++i) {
    dropped.push_back(Tensor::full({static_cast<int64_t>(kBytes / 4 - 16)}, i, kF32, Device::cpu()));
    kept.push_back(Tensor::full({100'000}, i, kF32, Device::cpu()));
    blocks.push_back(static_cast<char*>(dropped.back().mutable_raw()));
  }
  for (char* block : blocks) EXPECT_EQ(pages_of(block, kBytes), Pages::kSome);
  dropped.clear();
  for (char* block : blocks) EXPECT_EQ(pages_of(block, kBytes), Pages::kSome) << "free blocks are kept for reuse";
  cpu.trim();
  int num_between = 0;
  for (char* block : blocks) {
    const Pages pages = pages_of(block, kBytes);
    EXPECT_NE(pages, Pages::kSome);
    num_between += pages == Pages::kNone ? 1 : 0;
  }
  EXPECT_GE(num_between, 10) << "in slabs that kept tensors share";
  const MemoryStats after = cpu.stats();
  EXPECT_EQ(after.reserved_bytes - before.reserved_bytes, after.current_bytes - before.current_bytes);
  for (int i = 0; i < 40; ++i) {
    const auto* data = kept[static_cast<size_t>(i)].data<float>();
    EXPECT_EQ(std::count(data, data + 100'000, static_cast<float>(i)), 100'000);
  }
}

#endif

}  // namespace
}  // namespace weft
