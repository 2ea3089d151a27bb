// What a dry run says of work that is only measured.
#include "weft/core/dry_run.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "src/core/dry_allocator.h"
#include "src/core/rank_memory.h"
#include "weft/core/tensor.h"

namespace weft {
namespace {

constexpr int64_t kMiB = int64_t{1} << 20;

Tensor bytes(int64_t num) { return Tensor::empty({num}, kU8, Device::cpu()); }

// Current and peak bytes, in whatever order the names came first.
std::map<std::string, std::pair<int64_t, int64_t>> tags_of(const MemoryStats& stats) {
  std::map<std::string, std::pair<int64_t, int64_t>> tags;
  for (const auto& tag : stats.tags)
    if (tag.peak_bytes > 0) tags[tag.name] = {tag.current_bytes, tag.peak_bytes};
  return tags;
}

void expect_same(const MemoryStats& a, const MemoryStats& b) {
  EXPECT_EQ(a.current_bytes, b.current_bytes);
  EXPECT_EQ(a.peak_bytes, b.peak_bytes);
  EXPECT_EQ(a.reserved_bytes, b.reserved_bytes);
  EXPECT_EQ(a.num_allocations, b.num_allocations);
  EXPECT_EQ(a.num_system_allocations, b.num_system_allocations);
  EXPECT_EQ(tags_of(a), tags_of(b));
}

// What dry runs of a rank say after the same work, whether they measure something on the way or not: of the rank, and of the whole.
std::array<MemoryStats, 2> stats_after_work(int rank, bool is_measuring) {
  DryRun dry;
  set_memory_rank(rank);
  std::vector<Tensor> held;
  {
    const MemoryTag tag("activations");
    held.push_back(bytes(5 * kMiB));
    bytes(3 * kMiB);
  }
  if (is_measuring) {
    const int64_t two = dry_peak_bytes([] {
      const MemoryTag tag("of the measured work");
      const Tensor a = bytes(30 * kMiB), b = bytes(3 * kMiB);
    });
    EXPECT_GE(two, 33 * kMiB);
    EXPECT_LE(two, 33 * kMiB * 9 / 8);
    EXPECT_EQ(dry_peak_bytes([] {}), 0);
    const int64_t one_by_one = dry_peak_bytes([] {
      bytes(kMiB);
      bytes(kMiB);
    });
    EXPECT_EQ(one_by_one, dry_peak_bytes([] { bytes(kMiB); }));
    EXPECT_THROW(dry_peak_bytes([] {
                   const Tensor a = bytes(40 * kMiB);
                   throw std::runtime_error("in the middle");
                 }),
                 std::runtime_error);
  }
  held.push_back(bytes(2 * kMiB));
  held.push_back(bytes(7));
  const MemoryStats of_rank = dry.memory(Device::cpu());
  set_memory_rank(0);
  return {of_rank, dry.memory(Device::cpu())};
}

TEST(DryRun, IsTheSameWhetherWorkIsMeasuredOrNot) {
  for (const int rank : {0, 2}) {
    const auto measured = stats_after_work(rank, true), plain = stats_after_work(rank, false);
    for (size_t i = 0; i < plain.size(); ++i) expect_same(measured[i], plain[i]);
  }
}

TEST(DryRun, HasZerosWhereMeasuredWorkHasWritten) {
  const DryRun dry;
  const Tensor first = bytes(100);
  dry_peak_bytes([] {
    for (const int64_t num : {int64_t{100}, 3 * kMiB + 100}) {
      Tensor t = bytes(num);
      std::fill_n(static_cast<char*>(t.mutable_raw()), num, 7);
    }
  });
  for (const int64_t num : {int64_t{100}, int64_t{3000}, 3 * kMiB + 100}) {
    const Tensor t = bytes(num);
    const auto* data = static_cast<const char*>(t.raw());
    EXPECT_EQ(std::count(data, data + num, 0), num) << num;
  }
}

TEST(DryRun, KeepsWhatOutlivesMeasuredWork) {
  const DryRun dry;
  Tensor kept;
  dry_peak_bytes([&] {
    bytes(3 * kMiB);
    kept = bytes(5 * kMiB);
  });
  const Tensor other = bytes(5 * kMiB);
  EXPECT_NE(other.raw(), kept.raw());
  EXPECT_GE(dry.memory(Device::cpu()).current_bytes, 10 * kMiB);
  EXPECT_GE(dry.memory(Device::cpu()).reserved_bytes, dry.memory(Device::cpu()).current_bytes);
}

// The addresses that this process may have, for a while.
class AddressLimit {
 public:
  explicit AddressLimit(int64_t more) {
    std::ifstream file("/proc/self/statm");
    int64_t pages = 0;
    file >> pages;
    getrlimit(RLIMIT_AS, &before_);
    rlimit limited = before_;
    limited.rlim_cur = std::min(before_.rlim_cur, static_cast<rlim_t>(pages * sysconf(_SC_PAGESIZE) + more));
    is_set_ = pages > 0 && setrlimit(RLIMIT_AS, &limited) == 0;
  }
  ~AddressLimit() { setrlimit(RLIMIT_AS, &before_); }
  AddressLimit(const AddressLimit&) = delete;
  AddressLimit& operator=(const AddressLimit&) = delete;
  bool is_set() const { return is_set_; }

 private:
  rlimit before_{};
  bool is_set_ = false;
};

// A dry run takes the largest power of two of the addresses that there are: there is no second GiB to measure in.
TEST(DryRun, MeasuresWithinItsOwnAddresses) {
  const AddressLimit limit(1536 * kMiB);
  ASSERT_TRUE(limit.is_set());
  const DryRun dry;
  const Tensor held = bytes(300 * kMiB);
  for (int i = 0; i < 10; ++i) EXPECT_GE(dry_peak_bytes([] { bytes(400 * kMiB); }), 400 * kMiB);
  EXPECT_LT(dry.memory(Device::cpu()).peak_bytes, 400 * kMiB);
}

}  // namespace
}  // namespace weft
