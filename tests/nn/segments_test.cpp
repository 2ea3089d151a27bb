// How tokens of ranks are cut into the segments of recurrences, in layouts of any blocks with documents and padding: how many places they take, and
// that a segment that is cut within a document hands on its state. Ranks are threads.
#include "src/nn/mixing/segments.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <mutex>
#include <set>

#include "tests/nn/dealt_rows.h"
#include "tests/support/random.h"
#include "weft/autograd/recurrence.h"
#include "weft/distributed/segment_counts.h"
#include "weft/nn/context_group.h"
#include "weft/nn/tokens.h"

namespace weft {
namespace {

using mixing_test::Ints;
using mixing_test::random_rows;
using mixing_test::Rows;

// Of one document, but for what pads it.
Rows rows_of(const dist::Layout& layout, int64_t batch) {
  Rows rows{.batch = batch, .of_rank = layout.tokens_per_rank()};
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t t = 0; t < layout.padded_tokens(); ++t) rows.documents.push_back(t < layout.tokens() ? 0 : -1);
  for (int r = 0; r < layout.ranks(); ++r) {
    const Ints of_row = layout.positions(r);
    Ints& all = rows.positions.emplace_back();
    for (int64_t b = 0; b < batch; ++b) all.insert(all.end(), of_row.begin(), of_row.end());
  }
  return rows;
}

std::vector<Segments> plans_of(const Rows& rows) {
  std::vector<Segments> plans(static_cast<size_t>(rows.ranks()));
  dist::run_thread_ranks(rows.ranks(), [&](dist::Communicator& comm) {
    const TokenTable table(rows.data(comm.rank()));
    plans[static_cast<size_t>(comm.rank())] = plan_segments(ContextTokens(table, comm), comm.rank());
  });
  return plans;
}

TEST(Segments, TakeAboutTwiceThePlacesOfTheirTokens) {
  for (uint64_t seed = 0; seed < 120; ++seed) {
    const Rows rows = random_rows(seed, seed % 2 == 0 ? 5 : 150);
    const std::vector<Segments> plans = plans_of(rows);
    for (int r = 0; r < rows.ranks(); ++r) {
      SCOPED_TRACE(str("seed ", seed, ", rank ", r));
      const Segments& plan = plans[static_cast<size_t>(r)];
      const int64_t all = rows.batch * rows.of_rank, places = plan.count * plan.longest;
      int64_t tokens = 0;  // but padding
      for (int64_t i = 0; i < all; ++i) tokens += rows.documents[static_cast<size_t>(rows.at(r, i))] >= 0;
      if (plan.have_all_tokens()) { EXPECT_TRUE(tokens == all || places == all); }
      EXPECT_LE(places, places == all ? all : 2 * tokens + plan.count);
    }
  }
}

// 4000 tokens in 64 blocks: the last one of the second rank is padding.
TEST(Segments, OfPaddedStripesAreTheBlocks) {
  const std::vector<Segments> plans = plans_of(rows_of(dist::Layout::striped(4000, 2, 64), 1));
  EXPECT_TRUE(plans[0].are_tokens_in_order());
  EXPECT_EQ(plans[0].count, 32);
  EXPECT_EQ(plans[1].count, 31);
  EXPECT_EQ(plans[0].longest, 64);
  EXPECT_EQ(plans[1].longest, 64);
}

TEST(Segments, HoldEveryTokenOnceInTheOrderOfPositions) {
  for (uint64_t seed = 0; seed < 60; ++seed) {
    const Rows rows = random_rows(seed, seed % 2 == 0 ? 5 : 150);
    const std::vector<Segments> plans = plans_of(rows);
    for (int r = 0; r < rows.ranks(); ++r) {
      SCOPED_TRACE(str("seed ", seed, ", rank ", r));
      const Segments& plan = plans[static_cast<size_t>(r)];
      std::set<int32_t> places;
      for (int64_t i = 0; i < rows.batch * rows.of_rank; ++i) {
        const int32_t document = rows.documents[static_cast<size_t>(rows.at(r, i))];
        if (document < 0) continue;
        const int32_t place = plan.places[static_cast<size_t>(i)];
        EXPECT_TRUE(places.insert(place).second);
        EXPECT_EQ(plan.tokens[static_cast<size_t>(place)], i);
        EXPECT_EQ(plan.documents[static_cast<size_t>(place)], document);
        if (place % plan.longest == 0) continue;
        const int32_t before = plan.tokens[static_cast<size_t>(place) - 1];
        EXPECT_EQ(rows.at(r, before) + 1, rows.at(r, i));
      }
      EXPECT_EQ(plan.order, plans[0].order);
      EXPECT_EQ(plan.chains, plans[0].chains);
      EXPECT_EQ(plan.most, plans[0].most);
    }
  }
}

// Nothing is cut there, nor copied.
TEST(Segments, OfContiguousAndZigzagLayoutsAreTheTokensAsTheyStand) {
  for (int64_t tokens : {5, 9, 29, 64, 1000, 1024})
    for (int ranks : {2, 3, 4})
      for (const dist::Layout& layout :
           {dist::Layout::contiguous(tokens, ranks), dist::Layout::zigzag(tokens, ranks)}) {
        SCOPED_TRACE(to_string(layout));
        for (const Segments& plan : plans_of(rows_of(layout, 2))) {
          EXPECT_TRUE(plan.are_tokens_in_order());
          EXPECT_LE(plan.count, 4);
        }
      }
}

// What a plan of a training says without documents is what ranks do.
TEST(Segments, AreThoseOfTheLayout) {
  for (int64_t tokens : {9, 256, 1000, 4096})
    for (int ranks : {2, 3, 4})
      for (int64_t block : {1, 16, 64})
        for (const dist::Layout& layout : {dist::Layout::contiguous(tokens, ranks), dist::Layout::zigzag(tokens, ranks),
                                           dist::Layout::striped(tokens, ranks, block),
                                           dist::Layout::balanced(tokens, ranks, {.window = tokens / 5}, block)}) {
          SCOPED_TRACE(to_string(layout));
          const std::vector<dist::RankSegments> of_ranks = segments_of(layout);
          const std::vector<Segments> plans = plans_of(rows_of(layout, 2));
          int64_t most = 0;
          for (size_t r = 0; r < plans.size(); ++r) {
            const bool has_tokens = layout.positions(static_cast<int>(r))[0] < tokens;
            most = std::max(most, plans[r].count);
            if (!has_tokens) continue;  // a segment of padding
            EXPECT_EQ(plans[r].count, 2 * of_ranks[r].segments) << "rank " << r;
            EXPECT_EQ(plans[r].longest, of_ranks[r].length) << "rank " << r;
          }
          EXPECT_EQ(counts_of(layout, 2).most, most);
        }
}

TEST(Segments, AreCutWhereOthersAreMuchShorter) {
  EXPECT_EQ(dist::segment_length(std::vector<int64_t>{1000, 1000, 900}), 1000);
  EXPECT_EQ(dist::segment_length(std::vector<int64_t>{256, 256, 512, 256, 512}), 512);  // 1.4 places for a token
  EXPECT_EQ(dist::segment_length(std::vector<int64_t>{64, 64, 64, 128}), 64);
  EXPECT_EQ(dist::segment_length(std::vector<int64_t>{256, 256, 256, 256, 1024}), 256);
  EXPECT_EQ(dist::segment_length(std::vector<int64_t>{256, 1792}), 640);  // 4 segments, not 8
  EXPECT_EQ(dist::segment_length(std::vector<int64_t>{1, 1, 1, 9}), 3);   // shorter than a chunk
}

// Numbers of all tokens by row and position.
struct Numbers {
  std::vector<double> y, dx;
};

constexpr int64_t kWidth = 4;

struct RecurrentCase {
  bool is_delta = false, is_elementwise = false;
};

Var mixed(Tokens& tokens, const Var& x, const RecurrentCase& c) {
  const int64_t B = x.size(0), T = x.size(1);
  if (c.is_elementwise) return tokens.decay_scan(x, log_sigmoid(sin(x * 3.0) + 2.0));
  const Var one = slice(x, 2, 0, 1);
  RecurrenceVars in{.q_BTGK = reshape(x, {B, T, 1, kWidth}),
                    .k_BTGK = reshape(sin(x * 2.0), {B, T, 1, kWidth}) * 0.6,
                    .v_BTHV = reshape(cos(x), {B, T, 1, kWidth}),
                    .log_decay = log_sigmoid(one + 3.0)};
  if (c.is_delta) in.beta = sigmoid(one);
  return reshape(tokens.recur(in), {B, T, kWidth});
}

// Adds the numbers of a rank to those of all.
void run(const Rows& rows, int rank, const RecurrentCase& c, const ContextGroup* group, Numbers& into,
         std::mutex& mutex) {
  const int64_t all = rows.batch * rows.of_row(), count = rows.batch * rows.of_rank;
  auto here = [&](const char* name) {
    const std::vector<double> numbers = test::random_normal({all, kWidth}, name, kF64).to_vector<double>();
    std::vector<double> mine;
    for (int64_t i = 0; i < count; ++i) {
      const auto from = numbers.begin() + rows.at(rank, i) * kWidth;
      mine.insert(mine.end(), from, from + kWidth);
    }
    return Tensor::from(std::span<const double>(mine), {rows.batch, rows.of_rank, kWidth});
  };
  const Var x = variable(here("x"));
  Tokens tokens(rows.data(rank), {.is_training = true, .rng = Rng(3), .context = group});
  const Var y = tokens.settled(mixed(tokens, x, c));
  backward(sum_all(y * here("dy")));
  const std::vector<double> of_y = y.value().to_vector<double>(), of_x = x.grad().to_vector<double>();
  std::lock_guard lock(mutex);
  into.y.resize(static_cast<size_t>(all * kWidth)), into.dx.resize(static_cast<size_t>(all * kWidth));
  for (int64_t i = 0; i < count; ++i) {
    const auto to = static_cast<size_t>(rows.at(rank, i) * kWidth), from = static_cast<size_t>(i * kWidth);
    std::copy_n(of_y.begin() + static_cast<std::ptrdiff_t>(from), kWidth,
                into.y.begin() + static_cast<std::ptrdiff_t>(to));
    std::copy_n(of_x.begin() + static_cast<std::ptrdiff_t>(from), kWidth,
                into.dx.begin() + static_cast<std::ptrdiff_t>(to));
  }
}

Rows of_one_rank(const Rows& rows) {
  Rows one{.batch = rows.batch, .of_rank = rows.of_row(), .documents = rows.documents};
  Ints& positions = one.positions.emplace_back();
  for (int64_t i = 0; i < one.batch * one.of_rank; ++i) positions.push_back(static_cast<int32_t>(i % one.of_rank));
  return one;
}

// Whether some segment begins within a document behind another one of its rank: it was cut.
bool are_cut(const Rows& rows, const std::vector<Segments>& plans) {
  for (size_t r = 0; r < plans.size(); ++r)
    for (int64_t j = 0; j < plans[r].count; ++j) {
      const auto first = static_cast<size_t>(j * plans[r].longest);
      if (!plans[r].goes_on[static_cast<size_t>(j)]) continue;
      const int64_t at = rows.at(static_cast<int>(r), plans[r].tokens[first]);
      for (int64_t i = 0; i < rows.batch * rows.of_rank; ++i)
        if (at % rows.of_row() > 0 && rows.at(static_cast<int>(r), i) == at - 1) return true;
    }
  return false;
}

TEST(Segments, HandOnTheirStateWhereADocumentIsCut) {
  int cuts = 0;
  for (uint64_t seed = 0; seed < 24; ++seed) {
    const Rows rows = random_rows(seed, seed % 3 == 0 ? 40 : 6), one = of_one_rank(rows);
    cuts += are_cut(rows, plans_of(rows));
    for (const RecurrentCase& c : {RecurrentCase{}, {.is_delta = true}, {.is_elementwise = true}})
      for (dist::Carry carry : {dist::Carry::gather, dist::Carry::scan}) {
        SCOPED_TRACE(str("seed ", seed,
                         c.is_delta         ? ", delta, "
                         : c.is_elementwise ? ", element-wise, "
                                            : ", ",
                         to_string(carry)));
        std::mutex mutex;
        Numbers expected, got;
        run(one, 0, c, nullptr, expected, mutex);
        dist::run_thread_ranks(rows.ranks(), [&](dist::Communicator& comm) {
          const ContextGroup group{.tokens = &comm, .carry = carry};
          run(rows, comm.rank(), c, &group, got, mutex);
        });
        for (size_t i = 0; i < expected.y.size(); ++i) {
          if (rows.documents[i / kWidth] < 0) { ASSERT_EQ(got.y[i], 0) << "padding, output " << i; }
          ASSERT_NEAR(got.y[i], expected.y[i], 1e-11) << "output " << i;
          ASSERT_NEAR(got.dx[i], expected.dx[i], 1e-11) << "gradient of x " << i;
        }
      }
  }
  EXPECT_GE(cuts, 6);
}

}  // namespace
}  // namespace weft
