// Rows over ranks: every token is on one rank, with its target, position and document; what is added is padding.
#include "weft/data/spread.h"

#include <set>

#include "tests/data/support.h"

namespace weft::data {
namespace {

using test::expect_error;

// Ids from 100 on, targets one more, a document of 7 tokens and one of the rest.
Batch rows(int64_t count, int64_t tokens) {
  Batch batch;
  for (Tensor* x : {&batch.tokens, &batch.targets, &batch.positions, &batch.documents, &batch.document_positions})
    *x = Tensor::empty({count, tokens}, kI32, Device::cpu());
  for (int64_t i = 0; i < count * tokens; ++i) {
    const auto t = static_cast<int32_t>(i % tokens);
    batch.tokens.mutable_data<int32_t>()[i] = 100 + static_cast<int32_t>(i);
    batch.targets.mutable_data<int32_t>()[i] = 101 + static_cast<int32_t>(i);
    batch.positions.mutable_data<int32_t>()[i] = t;
    batch.documents.mutable_data<int32_t>()[i] = t < 7 ? 0 : 1;
    batch.document_positions.mutable_data<int32_t>()[i] = t < 7 ? t : t - 7;
  }
  return batch;
}

TEST(Spread, EveryTokenIsOnOneRankWithAllThatBelongsToIt) {
  const Batch all = rows(2, 29);
  for (int ranks : {1, 2, 3, 5})
    for (auto kind : {dist::LayoutKind::contiguous, dist::LayoutKind::striped, dist::LayoutKind::zigzag,
                      dist::LayoutKind::balanced})
      for (bool keeps_documents_apart : {true, false}) {
        std::set<int32_t> seen;
        const SpreadOptions options{
            .layout = kind, .ranks = ranks, .block = 2, .keeps_documents_apart = keeps_documents_apart};
        for (int rank = 0; rank < ranks; ++rank) {
          const Batch mine = spread(all, options, rank);
          for (int64_t i = 0; i < mine.tokens.num_elements(); ++i) {
            auto of = [&](const Tensor& x) { return x.data<int32_t>()[i]; };
            if (of(mine.documents) < 0) {
              EXPECT_EQ(of(mine.targets), -1);
              EXPECT_EQ(of(mine.document_positions), 0);
              EXPECT_GE(of(mine.positions), 29);
              continue;
            }
            const int32_t id = of(mine.tokens), t = (id - 100) % 29;
            EXPECT_TRUE(seen.insert(id).second) << id;
            EXPECT_EQ((id - 100) / 29, i / mine.tokens.size(1)) << "row of " << id;
            EXPECT_EQ(of(mine.targets), id + 1);
            EXPECT_EQ(of(mine.positions), t);
            EXPECT_EQ(of(mine.documents), keeps_documents_apart && t >= 7 ? 1 : 0);
            EXPECT_EQ(of(mine.document_positions), keeps_documents_apart && t >= 7 ? t - 7 : t);
          }
        }
        EXPECT_EQ(seen.size(), 58u) << to_string(kind) << " over " << ranks;
      }
}

// A rank of the balanced layout has as many visible pairs as the others.
TEST(Spread, BalancedRowsAreDealtByTheirOwnDocuments) {
  Batch all = rows(2, 64);
  for (int64_t t = 0; t < 64; ++t) all.documents.mutable_data<int32_t>()[64 + t] = t < 32 ? 0 : 1;  // of row 1
  const SpreadOptions options{.layout = dist::LayoutKind::balanced, .ranks = 2, .block = 2};
  for (int64_t row : {0, 1}) {
    int64_t pairs[2] = {};
    for (int rank : {0, 1}) {
      const Batch mine = spread(all, options, rank);
      for (int64_t i = 0; i < mine.tokens.size(1); ++i) {
        const int32_t p = mine.positions.data<int32_t>()[row * 32 + i], first = row == 0 ? 7 : 32;
        pairs[rank] += p < first ? p + 1 : p - first + 1;
      }
    }
    EXPECT_LT(std::abs(pairs[0] - pairs[1]), (pairs[0] + pairs[1]) / 20) << "row " << row;
  }
}

TEST(Spread, ErrorsSayWhatIsMissing) {
  const Batch all = rows(1, 8);
  expect_error([&] { spread(all, {.ranks = 2}, 2); }, {"rank 2 of 2"});
  Batch bare{all.tokens};
  expect_error([&] { spread(bare, {.ranks = 2}, 0); }, {"spread", "positions"});
}

}  // namespace
}  // namespace weft::data
