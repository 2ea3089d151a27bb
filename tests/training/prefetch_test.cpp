// Batches made ahead on another thread.
#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>
#include <thread>

#include "tests/support/errors.h"
#include "tests/training/support.h"
#include "weft/data/samples.h"

namespace weft {
namespace {

using namespace test;

TEST(Prefetcher, GivesTheBatchesInOrderAndStaysAhead) {
  std::atomic<int> calls{0};
  data::Prefetcher ahead(
      [&](int64_t first, int64_t rows) {
        ++calls;
        return rows_from(first, rows);
      },
      3, /*first=*/6, /*depth=*/2);
  for (int64_t i = 0; i < 5; ++i)
    EXPECT_EQ(ahead.next().tokens.to_vector<int32_t>(), rows_from(6 + 3 * i, 3).tokens.to_vector<int32_t>()) << i;
  while (calls < 7) std::this_thread::yield();  // two more, without being asked
  EXPECT_EQ(calls, 7) << "and no more than the depth";
}

TEST(Prefetcher, PassesOnWhatTheSourceThrowsInItsPlace) {
  data::Prefetcher ahead(
      [](int64_t first, int64_t rows) {
        if (first >= 4) throw std::runtime_error("sample 4 is broken");
        return rows_from(first, rows);
      },
      2);
  EXPECT_EQ(ahead.next().tokens.size(0), 2);
  EXPECT_EQ(ahead.next().tokens.size(0), 2);
  for (int i = 0; i < 2; ++i) {
    try {
      ahead.next();
      ADD_FAILURE() << "no error";
    } catch (const std::runtime_error& error) { EXPECT_STREQ(error.what(), "sample 4 is broken"); }
  }
}

TEST(Prefetcher, EndsWhileBatchesAreLeft) {
  for (int depth : {1, 4}) {
    data::Prefetcher ahead([](int64_t first, int64_t rows) { return rows_from(first, rows); }, 1, 0, depth);
    EXPECT_EQ(ahead.next().tokens.size(0), 1);
  }
  EXPECT_EQ(error_of([] { data::Prefetcher none({}, 1); }, {"no source"}), "");
  EXPECT_EQ(error_of([] { data::Prefetcher none(rows_from, 0); }, {"0 rows", "above 0"}), "");
}

}  // namespace
}  // namespace weft
