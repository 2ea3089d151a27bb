// Rows of the recall tasks: what stands in them, that every target can be found in its row, and that training and tests share no content.
#include "weft/data/recall.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <set>

#include "src/data/recall_rows.h"
#include "weft/core/error.h"

namespace weft::data {
namespace {

struct Row {
  std::vector<int32_t> ids, targets, groups;
};

Row row_of(const RecallTask& task, Split split, int64_t index) {
  const RecallRows rows = task.rows(split, index, 1);
  return {rows.batch.tokens.to_vector<int32_t>(), rows.batch.targets.to_vector<int32_t>(),
          rows.groups.to_vector<int32_t>()};
}

std::vector<RecallTask> all_kinds(uint64_t seed) {
  return {RecallTask(MqarOptions{}, 64, seed),
          RecallTask(MqarOptions{.vocab = 64, .pairs = 6, .updates = 3}, 48, seed),
          RecallTask(MqarOptions{.pairs = 4, .passes = 2, .has_random_filler = false}, 33, seed),
          RecallTask(CopyOptions{}, 64, seed),
          RecallTask(CopyOptions{.kind = CopyKind::delayed, .items = 7}, 20, seed),
          RecallTask(CopyOptions{.kind = CopyKind::string, .items = 9, .symbols = 26}, 20, seed),
          RecallTask(CopyOptions{.kind = CopyKind::reversed, .items = 9}, 18, seed),
          RecallTask(InductionOptions{}, 40, seed),
          RecallTask(InductionOptions{.symbols = 30, .repeats = true}, 31, seed),
          RecallTask(NeedleOptions{}, 64, seed),
          RecallTask(NeedleOptions{.needles = 3, .digits = 5, .hops = 2}, 80, seed),
          RecallTask(StateOptions{}, 24, seed),
          RecallTask(StateOptions{.kind = StateKind::permutation, .size = 5}, 24, seed)};
}

int64_t count_targets(const Row& row) {
  return std::count_if(row.targets.begin(), row.targets.end(), [](int32_t id) { return id >= 0; });
}

// The value that the key got last, by reading the pairs as they stand.
void expect_mqar(const MqarOptions& o, const Row& row) {
  const auto pairs = static_cast<size_t>(o.pairs * o.passes + o.updates);
  std::map<int32_t, int32_t> value;
  std::map<int32_t, int> writes;
  for (size_t i = 0; i < 2 * pairs; i += 2) {
    EXPECT_GE(row.ids[i], 1);
    EXPECT_LT(row.ids[i], o.vocab / 2);
    EXPECT_GE(row.ids[i + 1], o.vocab / 2);
    if (i >= static_cast<size_t>(2 * o.pairs * o.passes)) { EXPECT_NE(value[row.ids[i]], row.ids[i + 1]); }
    value[row.ids[i]] = row.ids[i + 1];
    ++writes[row.ids[i]];
  }
  EXPECT_EQ(static_cast<int64_t>(value.size()), o.pairs);
  std::set<int32_t> asked;
  for (size_t t = 0; t < row.ids.size(); ++t) {
    if (row.targets[t] < 0) continue;
    EXPECT_GE(t, 2 * pairs);
    EXPECT_EQ(t % 2, 0u);
    EXPECT_EQ(row.targets[t], value.at(row.ids[t]));
    asked.insert(row.ids[t]);
    if (o.updates > 0) { EXPECT_EQ(row.groups[t], writes[row.ids[t]] > o.passes); }
  }
  EXPECT_EQ(static_cast<int64_t>(asked.size()), o.pairs);
}

TEST(RecallTask, AsksForTheNewestValueOfEveryKey) {
  for (const MqarOptions& o :
       {MqarOptions{}, MqarOptions{.vocab = 64, .pairs = 6, .updates = 3}, MqarOptions{.pairs = 4, .passes = 2},
        MqarOptions{.vocab = 40, .pairs = 10, .updates = 10}})
    for (Split split : {Split::train, Split::test})
      for (int64_t i = 0; i < 50; ++i) expect_mqar(o, row_of(RecallTask(o, 64, 3), split, i));
}

TEST(RecallTask, LeavesFillerAtZeroIfItIsNotRandom) {
  const Row row = row_of(RecallTask(MqarOptions{.pairs = 4, .has_random_filler = false}, 64, 1), Split::train, 0);
  for (size_t t = 8; t < 64; ++t) EXPECT_EQ(row.ids[t] == 0, row.targets[t] < 0);
}

// The first of two slots follows the weights themselves; the second is drawn among the others.
TEST(RecallTask, DrawsSlotsWithoutReplacementByTheirWeights) {
  constexpr int kRows = 20000, kSlots = 6;
  const MqarOptions o{.pairs = 2, .power = 0.5};
  std::vector<double> weight, first(kSlots), second(kSlots), expected(kSlots);
  for (int j = 0; j < kSlots; ++j) weight.push_back(std::pow(j + 1, -0.5));
  const double total = std::accumulate(weight.begin(), weight.end(), 0.0);
  for (int i = 0; i < kSlots; ++i)
    for (int j = 0; j < kSlots; ++j)
      if (i != j)
        expected[static_cast<size_t>(j)] += weight[static_cast<size_t>(i)] / total * weight[static_cast<size_t>(j)] /
                                            (total - weight[static_cast<size_t>(i)]);
  for (int r = 0; r < kRows; ++r) {
    const recall::RecallRow row = recall::draw(o, 4 + 2 * kSlots, r, Rng(7)[static_cast<uint64_t>(r)]);
    for (size_t j = 0; j < kSlots; ++j) {
      const size_t t = 4 + 2 * j;
      if (row.targets[t] < 0) continue;
      (row.ids[t] == row.ids[0] ? first : second)[j] += 1.0 / kRows;
    }
  }
  for (size_t j = 0; j < kSlots; ++j) {
    const double p = weight[j] / total, q = expected[j];
    EXPECT_NEAR(first[j], p, 5 * std::sqrt(p * (1 - p) / kRows)) << j;
    EXPECT_NEAR(second[j], q, 5 * std::sqrt(q * (1 - q) / kRows)) << j;
  }
}

TEST(RecallTask, CopiesItemsInTheirOrder) {
  for (CopyKind kind : {CopyKind::selective, CopyKind::delayed, CopyKind::string, CopyKind::reversed}) {
    const CopyOptions o{.kind = kind, .items = 7, .symbols = 5};
    const bool is_string = kind == CopyKind::string || kind == CopyKind::reversed;
    for (int64_t i = 0; i < 30; ++i) {
      const Row row = row_of(RecallTask(o, 30, 1), Split::train, i);
      const auto marker = static_cast<size_t>(std::find(row.ids.begin(), row.ids.end(), 1) - row.ids.begin());
      EXPECT_EQ(marker, is_string ? 7u : 23u);
      std::vector<int32_t> items, asked;
      for (size_t t = 0; t < marker; ++t)
        if (row.ids[t] > 1) items.push_back(row.ids[t]);
      for (size_t t = 0; t < row.ids.size(); ++t) {
        if (row.targets[t] < 0) continue;
        if (is_string && !asked.empty()) { EXPECT_EQ(row.ids[t], asked.back()); }
        asked.push_back(row.targets[t]);
      }
      if (kind == CopyKind::reversed) std::reverse(items.begin(), items.end());
      EXPECT_EQ(asked, items);
      EXPECT_EQ(items.size(), 7u);
      EXPECT_LT(*std::max_element(row.ids.begin(), row.ids.end()), 7);
    }
  }
}

TEST(RecallTask, AsksWhatFollowedTheSpecialSymbol) {
  for (int64_t i = 0; i < 100; ++i) {
    const Row row = row_of(RecallTask(InductionOptions{}, 40, 1), Split::train, i);
    std::vector<size_t> places;
    for (size_t t = 0; t < row.ids.size(); ++t)
      if (row.ids[t] == 16) places.push_back(t);
    ASSERT_EQ(places.size(), 2u);
    EXPECT_TRUE(places[0] >= 1 && places[0] < 20 && places[1] == 39);
    EXPECT_EQ(row.targets[39], row.ids[places[0] + 1]);
    EXPECT_EQ(count_targets(row), 1);
  }
  const Row repeated = row_of(RecallTask(InductionOptions{.symbols = 30, .repeats = true}, 31, 1), Split::test, 0);
  for (size_t t = 0; t < 31; ++t) {
    EXPECT_EQ(repeated.targets[t], t >= 15 && t < 30 ? repeated.ids[t + 1] : -1);
    if (t >= 15) { EXPECT_EQ(repeated.ids[t], repeated.ids[t - 15]); }
  }
}

// Follows the words from the question to the digits.
void expect_needle(const NeedleOptions& o, const Row& row, int64_t depth) {
  std::map<int32_t, size_t> said;  // where the value of a word begins
  size_t ask = 0;
  for (size_t t = 0; t + 2 < row.ids.size(); ++t) {
    if (row.ids[t] == 3) ask = t;
    if (row.ids[t] == 1 && row.ids[t + 2] == 2) said[row.ids[t + 1]] = t + 3;
  }
  EXPECT_EQ(static_cast<int64_t>(said.size()), o.needles + o.hops);
  int32_t word = row.ids[ask + 1];
  EXPECT_EQ(ask + 2 + static_cast<size_t>(o.digits), row.ids.size());
  int64_t hops = 0;
  for (; row.ids[said.at(word)] == 1; ++hops) word = row.ids[said.at(word) + 1];
  EXPECT_EQ(hops, o.hops);
  for (size_t d = 0; d < static_cast<size_t>(o.digits); ++d) {
    const int32_t digit = row.ids[said.at(word) + d];
    EXPECT_TRUE(digit >= 4 && digit < 14);
    EXPECT_EQ(row.targets[ask + 2 + d], digit);
    EXPECT_EQ(row.groups[ask + 2 + d], depth);
    if (d > 0) { EXPECT_EQ(row.ids[ask + 2 + d], row.ids[said.at(word) + d - 1]); }
  }
  EXPECT_EQ(count_targets(row), o.digits);
}

TEST(RecallTask, HidesNeedlesThatTheQuestionLeadsTo) {
  for (const NeedleOptions& o :
       {NeedleOptions{}, NeedleOptions{.needles = 3, .digits = 5}, NeedleOptions{.needles = 2, .digits = 2, .hops = 3}})
    for (Split split : {Split::train, Split::test})
      for (int64_t i = 0; i < 40; ++i) expect_needle(o, row_of(RecallTask(o, 90, 2), split, i), i % 10);
}

TEST(RecallTask, PutsTheNeedleAtTenDepths) {
  for (int64_t i = 0; i < 10; ++i) {
    const Row row = row_of(RecallTask(NeedleOptions{}, 103, 1), Split::test, i);  // 90 tokens of haystack
    EXPECT_EQ(std::find(row.ids.begin(), row.ids.end(), 1) - row.ids.begin(), 10 * i);
  }
}

TEST(RecallTask, MultipliesGroupElements) {
  const Row parity = row_of(RecallTask(StateOptions{}, 24, 1), Split::train, 5);
  int32_t sum = 0;
  for (size_t t = 0; t < 24; ++t) EXPECT_EQ(parity.targets[t], sum = (sum + parity.ids[t]) % 2);

  // Three things: the six permutations in lexicographic order, applied one after the other.
  const int order[6][3] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
  const Row moved = row_of(RecallTask(StateOptions{.kind = StateKind::permutation, .size = 3}, 24, 1), Split::test, 2);
  int things[3] = {0, 1, 2};
  for (size_t t = 0; t < 24; ++t) {
    const int* by = order[moved.ids[t]];
    const int next[3] = {things[by[0]], things[by[1]], things[by[2]]};
    std::copy(next, next + 3, things);
    EXPECT_TRUE(std::equal(things, things + 3, order[moved.targets[t]])) << t;
  }
}

TEST(RecallTask, RowsDependOnSeedAndIndexAlone) {
  for (size_t k = 0; k < all_kinds(1).size(); ++k) {
    const RecallTask task = all_kinds(1)[k], other = all_kinds(2)[k];
    const RecallRows many = task.rows(Split::train, 3, 4);
    const std::vector<int32_t> fifth = many.batch.tokens.slice(0, 2, 3).to_vector<int32_t>();
    EXPECT_EQ(fifth, row_of(task, Split::train, 5).ids) << task.name();
    EXPECT_NE(fifth, row_of(other, Split::train, 5).ids) << task.name();
    EXPECT_EQ(row_of(task, Split::test, 5).ids, row_of(other, Split::test, 5).ids) << task.name();
    for (const RecallRows& rows : {task.rows(Split::train, 0, 40), task.rows(Split::test, 0, 40)}) {
      const auto ids = rows.batch.tokens.to_vector<int32_t>(), targets = rows.batch.targets.to_vector<int32_t>(),
                 groups = rows.groups.to_vector<int32_t>();
      for (size_t i = 0; i < ids.size(); ++i) {
        EXPECT_TRUE(ids[i] >= 0 && ids[i] < task.vocab() && targets[i] < task.vocab());
        EXPECT_EQ(groups[i] < 0, targets[i] < 0);
        EXPECT_LT(groups[i], static_cast<int32_t>(task.group_names().size()));
      }
    }
  }
}

// A content has one split, whatever seed, index and filler are. Here the contents are so few that both sides draw most of them.
TEST(RecallTask, NoContentIsInBothSplits) {
  auto contents = [](const MqarOptions& o, Split split, uint64_t seed) {
    std::set<std::vector<int32_t>> all;
    const RecallTask task(o, 16, seed);
    for (int64_t i = 0; i < 1500; ++i) {
      Row row = row_of(task, split, i);
      row.ids.resize(4);
      all.insert(row.ids);
    }
    return all;
  };
  const MqarOptions o{.vocab = 14, .pairs = 2};  // 6 x 5 x 7 x 6 = 1260 contents
  const auto tests = contents(o, Split::test, 1);
  std::set<std::vector<int32_t>> training = contents(o, Split::train, 1);
  training.merge(contents(o, Split::train, 2));
  for (const auto& content : tests) EXPECT_FALSE(training.contains(content));
  EXPECT_GT(tests.size(), 40u);
  EXPECT_GT(training.size(), 1000u);
  EXPECT_LE(tests.size() + training.size(), 1260u);
}

TEST(RecallTask, KnowsTheSizesThatFit) {
  EXPECT_EQ(RecallTask(MqarOptions{.pairs = 6}, 64, 1).sizes(), (std::vector<int64_t>{1, 2, 4, 6, 8, 16}));
  EXPECT_EQ(RecallTask(MqarOptions{.pairs = 6, .updates = 3}, 48, 1).sizes(), (std::vector<int64_t>{4, 6, 8}));
  EXPECT_EQ(RecallTask(CopyOptions{.items = 3}, 16, 1).sizes(), (std::vector<int64_t>{1, 2, 3, 4, 8}));
  EXPECT_EQ(RecallTask(StateOptions{}, 16, 1).sizes(), (std::vector<int64_t>{0}));
  const RecallTask larger = RecallTask(NeedleOptions{}, 64, 1).with_size(4);
  EXPECT_EQ(std::get<NeedleOptions>(larger.options()).needles, 4);
}

void expect_error(const RecallOptions& options, int64_t context, const std::string& part) {
  try {
    RecallTask(options, context, 1).rows(Split::test, 0, 1);
    ADD_FAILURE() << "no error: " << part;
  } catch (const Error& error) {
    EXPECT_NE(error.problem().find(part), std::string::npos) << error.problem();
    EXPECT_FALSE(error.fix().empty());
  }
}

TEST(RecallTask, RefusesWhatDoesNotFit) {
  expect_error(MqarOptions{.pairs = 8}, 31, "mqar: a row of 31 tokens, and the task needs 32");
  expect_error(MqarOptions{.vocab = 16, .pairs = 8}, 64, "mqar: a vocabulary of 16 ids has 7 keys and 8 values");
  expect_error(MqarOptions{.pairs = 2, .updates = 3}, 64, "mqar: updates is 3");
  expect_error(MqarOptions{.power = 0}, 64, "mqar: power is 0");
  expect_error(CopyOptions{.items = 16}, 31, "copy: a row of 31 tokens");
  expect_error(InductionOptions{.symbols = 1}, 64, "induction: symbols is 1");
  expect_error(NeedleOptions{.vocab = 80}, 64, "needle: vocab is 80");
  expect_error(NeedleOptions{.needles = 40, .hops = 30}, 4096, "needle: needles and hops together is 70");
  expect_error(StateOptions{.kind = StateKind::permutation, .size = 6}, 64, "state: size is 6");
  expect_error(MqarOptions{.vocab = int64_t{1} << 33}, 64, "mqar: vocab is 8589934592");
  for (int64_t context : {int64_t{1} << 31, int64_t{1} << 62}) {  // positions are 32-bit integers
    expect_error(MqarOptions{}, context, str("mqar: a row of ", context, " tokens"));
    expect_error(CopyOptions{}, context, str("copy: a row of ", context, " tokens"));
    expect_error(StateOptions{}, context, str("state: a row of ", context, " tokens"));
  }
  expect_error(StateOptions{}, 1, "state: none of 65536 rows belongs to the tests");
}

}  // namespace
}  // namespace weft::data
