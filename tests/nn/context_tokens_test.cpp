// Which tokens ranks fetch from each other for shifts and convolutions, against loops over all pairs of tokens, in layouts of any blocks with
// documents and padding. Ranks are threads.
#include "src/nn/mixing/context_tokens.h"

#include <gtest/gtest.h>

#include "tests/nn/dealt_rows.h"

namespace weft {
namespace {

using mixing_test::Ints;
using mixing_test::random_rows;
using mixing_test::Rows;

// Places in order() that the rank wants: those of others near a token of its own in one chain.
std::vector<size_t> wanted(const ContextTokens& all, int rank, int64_t before, int64_t after) {
  const int64_t count = all.batch() * all.tokens();
  auto owner = [&](size_t i) { return all.order()[i] / count; };
  std::vector<size_t> places;
  for (size_t i = 0; i < all.order().size(); ++i) {
    bool is_wanted = false;
    for (size_t own = 0; own < all.order().size(); ++own) {
      if (owner(own) != rank || all.chains()[own] != all.chains()[i]) continue;
      const int64_t distance = static_cast<int64_t>(own) - static_cast<int64_t>(i);
      is_wanted = is_wanted || (distance > 0 ? distance <= before : -distance <= after);
    }
    if (is_wanted && owner(i) != rank) places.push_back(i);
  }
  return places;
}

// By places alone: of the tokens here and those that come, in order(), which they are, and where they are beside each other.
void expect_halo(const ContextTokens& all, int rank, int64_t before, int64_t after) {
  const int64_t count = all.batch() * all.tokens();
  const ContextTokens::Halo& halo = all.halo(before, after);
  const std::vector<size_t> coming = wanted(all, rank, before, after);
  std::vector<int64_t> receives;
  std::vector<int32_t> index(all.order().size(), -1);
  auto next = static_cast<int32_t>(count);
  for (int r = 0; r < all.ranks(); ++r) {
    Ints sends;
    for (size_t i : wanted(all, r, before, after))
      if (r != rank && all.order()[i] / count == rank) sends.push_back(static_cast<int32_t>(all.order()[i] % count));
    EXPECT_EQ(halo.sends[static_cast<size_t>(r)], sends) << "to rank " << r;
    const int32_t first = next;
    for (size_t i : coming)
      if (all.order()[i] / count == r) index[i] = next++;
    receives.push_back(next - first);
  }
  EXPECT_EQ(halo.receives, receives);
  Ints order, chains, places(static_cast<size_t>(count));
  int32_t chain = 0;
  int64_t last = -1;
  for (size_t i = 0; i < index.size(); ++i) {
    if (all.order()[i] / count == rank) index[i] = static_cast<int32_t>(all.order()[i] % count);
    if (index[i] < 0) continue;
    const bool follows = last + 1 == static_cast<int64_t>(i) && (i == 0 || all.chains()[i] == all.chains()[i - 1]);
    chain += last < 0 || follows ? 0 : 1;
    last = static_cast<int64_t>(i);
    if (index[i] < count) places[static_cast<size_t>(index[i])] = static_cast<int32_t>(order.size());
    order.push_back(index[i]), chains.push_back(chain);
  }
  EXPECT_EQ(halo.order, order);
  EXPECT_EQ(halo.chains, chains);
  EXPECT_EQ(halo.places, places);
}

TEST(ContextTokens, HalosAreThoseOfLoopsOverAllPairs) {
  for (uint64_t seed = 0; seed < 40; ++seed) {
    const Rows rows = random_rows(seed, 5);
    dist::run_thread_ranks(rows.ranks(), [&](dist::Communicator& comm) {
      SCOPED_TRACE(str("seed ", seed, ", rank ", comm.rank()));
      const TokenTable table(rows.data(comm.rank()));
      const ContextTokens all(table, comm);
      for (int64_t before : {0, 1, 3, 20, 1000})
        for (int64_t after : {0, 2, 7}) expect_halo(all, comm.rank(), before, after);
    });
  }
}

}  // namespace
}  // namespace weft
