// Slabs of huge pages, and the allocator that cuts small blocks from them.
#include "src/core/slabs.h"

#include <gtest/gtest.h>

#include <cstring>
#include <map>
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
  for (auto [block, bytes] : blocks) EXPECT_TRUE(slabs.give(block, bytes));
  EXPECT_EQ(slabs.num_slabs(), 0U);
}

TEST(Slabs, FillTheRoomThatIsThereFirst) {
  Slabs slabs;
  std::vector<void*> blocks;
  for (size_t i = 0; i < Slabs::kSlabBytes / kMiB; ++i) blocks.push_back(slabs.take(kMiB));
  EXPECT_EQ(slabs.num_slabs(), 1U);
  // Neighbours that are given back are one stretch, in whatever order.
  EXPECT_TRUE(slabs.give(blocks[3], kMiB));
  EXPECT_TRUE(slabs.give(blocks[1], kMiB));
  EXPECT_TRUE(slabs.give(blocks[2], kMiB));
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
  EXPECT_TRUE(slabs.give(block, kMiB));
  EXPECT_EQ(slabs.take(kMiB), block);
  EXPECT_EQ(block[kMiB / 2], 0);  // a new page
  EXPECT_TRUE(slabs.give(block, kMiB));
  EXPECT_TRUE(slabs.give(kept, kMiB));
}

TEST(Slabs, KnowWhatIsNotTheirs) {
  Slabs slabs;
  std::vector<char> other(kMiB);
  EXPECT_FALSE(slabs.give(other.data(), kMiB));
  void* block = slabs.take(128);
  EXPECT_FALSE(slabs.give(other.data(), kMiB));
  EXPECT_TRUE(slabs.give(block, 128));
}

TEST(Allocator, TrimGivesBackSmallBlocksBetweenThoseInUse) {
  Allocator& cpu = allocator(Device::cpu());
  cpu.trim();
  const MemoryStats before = cpu.stats();
  std::vector<Tensor> kept;
  for (int i = 0; i < 40; ++i) {
    Tensor dropped = Tensor::empty({static_cast<int64_t>(kMiB / 4 - 64)}, kF32, Device::cpu());
    kept.push_back(Tensor::full({1000}, i, kF32, Device::cpu()));
  }
  cpu.trim();
  const MemoryStats after = cpu.stats();
  EXPECT_EQ(after.reserved_bytes - before.reserved_bytes, after.current_bytes - before.current_bytes);
  for (int i = 0; i < 40; ++i) EXPECT_EQ(kept[static_cast<size_t>(i)].data<float>()[999], static_cast<float>(i));
}

}  // namespace
}  // namespace weft
