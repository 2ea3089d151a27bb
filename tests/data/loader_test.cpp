// Rows, targets and documents; the order of samples; validation windows; mixtures; bad ids.
#include "weft/data/loader.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <set>

#include "tests/data/support.h"
#include "tests/support/random.h"
#include "weft/data/samples.h"

namespace weft::data {
namespace {

using test::expect_error;
using test::TempFolder;
using Ids = std::vector<int32_t>;

Ids counting(int64_t n) {
  Ids ids(static_cast<size_t>(n));
  std::iota(ids.begin(), ids.end(), 0);
  return ids;
}

Ids row(const Tensor& t, int64_t index = 0) { return t.select(0, index).to_vector<int32_t>(); }

Loader one(Dataset dataset, RowOptions rows, uint64_t seed = 1) {
  return Loader({{std::move(dataset), 1.0}}, rows, seed);
}

// Every row of every tensor of both batches.
void append(std::vector<Ids>& rows, const Batch& batch) {
  for (int64_t b = 0; b < batch.tokens.size(0); ++b)
    for (const Tensor* t :
         {&batch.tokens, &batch.targets, &batch.positions, &batch.documents, &batch.document_positions})
      rows.push_back(row(*t, b));
}

TEST(Loader, TargetsAreTheNextTokens) {
  Loader loader = one(Dataset(counting(1000)), {.context = 16, .vocab = 1000});
  Batch batch = loader.batch(3, 5);
  EXPECT_EQ(batch.tokens.shape(), (Shape{5, 16}));
  for (int64_t b = 0; b < 5; ++b) {
    int32_t begin = row(batch.tokens, b)[0];
    EXPECT_EQ(loader.place(3 + b).begin, begin);
    for (size_t t = 0; t < 16; ++t) {
      EXPECT_EQ(row(batch.tokens, b)[t], begin + static_cast<int32_t>(t));
      EXPECT_EQ(row(batch.targets, b)[t], begin + static_cast<int32_t>(t) + 1);
    }
    EXPECT_EQ(row(batch.positions, b), counting(16));
    EXPECT_EQ(row(batch.document_positions, b), counting(16));
    EXPECT_EQ(row(batch.documents, b), Ids(16, 0));
  }
}

TEST(Loader, OrderDoesNotDependOnMicroBatchOrRanks) {
  Loader loader = one(Dataset(counting(5000)), {.context = 7, .vocab = 5000});
  std::vector<Ids> expected;
  append(expected, loader.batch(0, 48));
  for (int64_t micro : {1, 2, 3, 8, 16}) {
    std::vector<Ids> got;
    for (int64_t at = 0; at < 48; at += micro) append(got, loader.batch(at, micro));
    EXPECT_EQ(got, expected) << micro;
  }
  for (int64_t ranks : {1, 2, 4}) {  // rank r takes its part of each global batch of 8
    std::vector<Ids> got;
    for (int64_t step = 0; step < 6; ++step)
      for (int64_t rank = 0; rank < ranks; ++rank) {
        Loader own = one(Dataset(counting(5000)), {.context = 7, .vocab = 5000});
        append(got, own.batch(step * 8 + rank * (8 / ranks), 8 / ranks));
      }
    EXPECT_EQ(got, expected) << ranks;
  }
}

TEST(Loader, EpochVisitsEveryWindowOnceInAnotherOrder) {
  const int64_t context = 10, tokens = 1003;
  Loader loader = one(Dataset(counting(tokens)), {.context = context, .vocab = tokens});
  int64_t windows = loader.samples_per_epoch();
  EXPECT_EQ(windows, 99);
  std::vector<int64_t> orders[3];
  std::set<int64_t> firsts;
  for (int64_t epoch = 0; epoch < 20; ++epoch) {
    std::set<int64_t> begins;
    for (int64_t i = 0; i < windows; ++i) {
      Loader::Place at = loader.place(epoch * windows + i);
      EXPECT_EQ(at.epoch, epoch);
      EXPECT_TRUE(begins.insert(at.begin).second);
      if (epoch < 3) orders[epoch].push_back(at.begin);
    }
    int64_t first = *begins.begin();
    firsts.insert(first);
    EXPECT_LT(first, context);
    EXPECT_EQ(*begins.rbegin(), first + (windows - 1) * context);
    EXPECT_LT(*begins.rbegin() + context, tokens);
  }
  EXPECT_GT(firsts.size(), 5u);
  EXPECT_NE(orders[0], orders[1]);
  EXPECT_FALSE(std::is_sorted(orders[0].begin(), orders[0].end()));
  Loader other = one(Dataset(counting(tokens)), {.context = context, .vocab = tokens}, 2);
  std::vector<int64_t> order;
  for (int64_t i = 0; i < windows; ++i) order.push_back(other.place(i).begin);
  EXPECT_NE(order, orders[0]);
}

TEST(Loader, TakesDatasetsBarelyLongEnough) {
  for (int64_t tokens = 11; tokens < 45; ++tokens) {
    Loader loader = one(Dataset(counting(tokens)), {.context = 10, .vocab = tokens});
    for (int64_t sample = 0; sample < 40; ++sample) {
      Batch batch = loader.batch(sample, 1);
      EXPECT_EQ(row(batch.targets)[9], row(batch.tokens)[0] + 10);
    }
  }
}

struct DocumentCase {
  DocumentRule rule;
  Ids ids, documents, positions, targets;
};

TEST(Loader, MarksDocumentsByEveryRule) {
  // 9 is end of text. One row of six tokens and the target of the last.
  Dataset index(std::vector<Shard>{Shard::in_memory({1, 2, 3, 4, 5, 6, 7}, {0, 2, 2, 5})});
  std::vector<DocumentCase> cases = {
      {DocumentRule::none, {1, 9, 2, 3, 9, 4, 5}, {0, 0, 0, 0, 0, 0}, {0, 1, 2, 3, 4, 5}, {9, 2, 3, 9, 4, 5}},
      {DocumentRule::ends_with_id, {1, 9, 2, 3, 9, 4, 5}, {0, 0, 1, 1, 1, 2}, {0, 1, 0, 1, 2, 0}, {9, -1, 3, 9, -1, 5}},
      {DocumentRule::ends_with_id, {9, 9, 2, 3, 4, 5, 9}, {0, 1, 2, 2, 2, 2}, {0, 0, 0, 1, 2, 3}, {-1, -1, 3, 4, 5, 9}},
      {DocumentRule::ends_with_id, {1, 2, 3, 4, 5, 9, 1}, {0, 0, 0, 0, 0, 0}, {0, 1, 2, 3, 4, 5}, {2, 3, 4, 5, 9, -1}},
      {DocumentRule::begins_with_id,
       {9, 1, 2, 9, 3, 9, 9},
       {0, 0, 0, 1, 1, 2},
       {0, 1, 2, 0, 1, 0},
       {1, 2, -1, 3, -1, -1}},
      {DocumentRule::begins_with_id,
       {1, 1, 2, 9, 3, 4, 5},
       {0, 0, 0, 1, 1, 1},
       {0, 1, 2, 0, 1, 2},
       {1, 2, -1, 3, 4, 5}},
      {DocumentRule::index, {}, {0, 0, 1, 1, 1, 2}, {0, 1, 0, 1, 2, 0}, {2, -1, 4, 5, -1, 7}}};
  for (const DocumentCase& c : cases) {
    Dataset dataset = c.rule == DocumentRule::index ? index : Dataset(c.ids);
    RowOptions rows{.context = 6, .vocab = 10, .documents = c.rule, .end_of_text = 9};
    Batch batch = one(dataset, rows).batch(0, 1);
    EXPECT_EQ(row(batch.documents), c.documents);
    EXPECT_EQ(row(batch.document_positions), c.positions);
    EXPECT_EQ(row(batch.targets), c.targets);
    EXPECT_EQ(row(batch.positions), counting(6));
    Batch validation = ValidationWindows(dataset, rows).batch(0, 1);
    EXPECT_EQ(row(validation.targets), c.targets);
  }
}

TEST(Loader, FindsIndexedDocumentsAcrossShardsAndSlices) {
  // Documents begin at 0 3 | 5 6 of the stream 0..8; the slice starts at 1.
  Dataset dataset(
      std::vector<Shard>{Shard::in_memory({0, 1, 2, 3, 4}, {0, 3}), Shard::in_memory({5, 6, 7, 8}, {0, 1})});
  ValidationWindows windows(dataset.slice(1, 9), {.context = 4, .vocab = 9, .documents = DocumentRule::index});
  ASSERT_EQ(windows.num_windows(), 2);
  Batch batch = windows.batch(0, 2);
  EXPECT_EQ(row(batch.tokens, 0), (Ids{1, 2, 3, 4}));
  EXPECT_EQ(row(batch.targets, 0), (Ids{2, -1, 4, -1}));
  EXPECT_EQ(row(batch.documents, 0), (Ids{0, 0, 1, 1}));
  EXPECT_EQ(row(batch.tokens, 1), (Ids{5, 6, 7, 0}));
  EXPECT_EQ(row(batch.targets, 1), (Ids{-1, 7, 8, -1}));
  EXPECT_EQ(row(batch.documents, 1), (Ids{0, 1, 1, -1}));
  EXPECT_EQ(dataset.next_document(4), 5);
  EXPECT_EQ(dataset.next_document(6), 9);
}

TEST(ValidationWindows, PredictEveryTokenButTheFirstOnce) {
  for (int64_t tokens : {2, 3, 7, 8, 9, 16, 17, 50}) {
    ValidationWindows windows(Dataset(counting(tokens)), {.context = 8, .vocab = tokens});
    std::vector<int32_t> predicted;
    for (int64_t w = 0; w < windows.num_windows(); ++w) {
      Batch batch = windows.batch(w, 1);
      Ids targets = row(batch.targets), inputs = row(batch.tokens), documents = row(batch.documents);
      for (size_t t = 0; t < 8; ++t) {
        EXPECT_EQ(documents[t], targets[t] < 0 ? -1 : 0);
        if (targets[t] < 0) continue;
        EXPECT_EQ(inputs[t], targets[t] - 1);
        predicted.push_back(targets[t]);
      }
      EXPECT_EQ(row(batch.positions), counting(8));
    }
    Ids all = counting(tokens);
    EXPECT_EQ(predicted, Ids(all.begin() + 1, all.end()));
  }
}

TEST(Dataset, ReadsAcrossShardsAndSplitsItsTail) {
  Dataset dataset(
      std::vector<Shard>{Shard::in_memory({0, 1, 2}), Shard::in_memory({3}), Shard::in_memory({4, 5, 6, 7, 8, 9})});
  Ids ids(6);
  dataset.read(1, ids, 10);
  EXPECT_EQ(ids, (Ids{1, 2, 3, 4, 5, 6}));
  auto [head, tail] = split_tail(dataset, 0.2);
  EXPECT_EQ(head.num_tokens(), 8);
  EXPECT_EQ(tail.num_tokens(), 2);
  tail.read(0, std::span(ids).first(2), 10);
  EXPECT_EQ(ids[0], 8);
  EXPECT_EQ(split_tail(Dataset(Ids(1115394)), 0.1).first.num_tokens(), 1003854);  // as Python's int(n * 0.9)
}

TEST(Loader, MixesSourcesByWeight) {
  Dataset a(Ids(500, 1)), b(Ids(300, 2));
  Loader loader({{a, 3.0}, {b, 1.0}}, {.context = 5, .vocab = 3}, 1);
  int64_t from_a = 0;
  std::map<int64_t, int64_t> epochs_of_b;
  for (int64_t g = 0; g < 4000; ++g) {
    Loader::Place at = loader.place(g);
    from_a += at.source == 0;
    EXPECT_LE(std::abs(static_cast<double>(from_a) - 0.75 * static_cast<double>(g + 1)), 1.0);
    EXPECT_EQ(row(loader.batch(g, 1).tokens)[0], at.source + 1);
    if (at.source == 1) ++epochs_of_b[at.epoch];
  }
  EXPECT_EQ(epochs_of_b[0], loader.samples_per_epoch(1));  // each source counts its own epochs
}

TEST(Loader, NamesTheShardOfABadId) {
  TempFolder folder;
  Ids ids(2000, 4);
  ids[1234] = 77;
  ShardWriter writer(folder / "planted.bin", ShardKind::header, 2);
  writer.append(ids);
  writer.close();
  Loader loader = one(Dataset({Shard::open(folder / "planted.bin")}), {.context = 50, .vocab = 64});
  expect_error(
      [&] {
        for (int64_t g = 0; g < loader.samples_per_epoch(); ++g) loader.batch(g, 1);
      },
      {"planted.bin", "id 77 at token 1234", "vocabulary of 64"});
}

// A fixed token stands in place of every row's first, in training and validation; targets stay.
TEST(Loader, FixedFirstToken) {
  Dataset data(counting(50));
  RowOptions plain{.context = 6, .vocab = 50}, fixed{.context = 6, .vocab = 50, .first_token = 50};
  auto compare = [](const Batch& a, const Batch& b) {
    auto x = a.tokens.to_vector<int32_t>(), y = b.tokens.to_vector<int32_t>();
    EXPECT_EQ(a.targets.to_vector<int32_t>(), b.targets.to_vector<int32_t>());
    for (size_t i = 0; i < x.size(); ++i) EXPECT_EQ(y[i], i % 6 == 0 ? 50 : x[i]);
  };
  compare(one(data, plain).batch(0, 5), one(data, fixed).batch(0, 5));
  compare(ValidationWindows(data, plain).batch(0, 9), ValidationWindows(data, fixed).batch(0, 9));
  expect_error([&] { one(data, {.context = 6, .vocab = 50, .first_token = 7}); }, {"first token 7", "id of the data"});
  expect_error(
      [&] {
        one(data,
            {.context = 6, .vocab = 50, .documents = DocumentRule::ends_with_id, .end_of_text = 3, .first_token = 50});
      },
      {"several documents", "document_mask=false"});
}

TEST(LoaderErrors, SayWhatAndHowToFix) {
  Dataset ten(counting(10));
  auto make = [](Dataset d, RowOptions rows) { one(std::move(d), rows); };
  expect_error([&] { make(ten, {.context = 10, .vocab = 10}); }, {"10 tokens", "needs 11", "shorter context"});
  expect_error([&] { make(ten, {.context = 0, .vocab = 10}); }, {"context is 0"});
  expect_error([&] { make(ten, {.context = 4, .vocab = 0}); }, {"vocab is 0"});
  expect_error([&] { make(ten, {.context = 4, .vocab = 9, .documents = DocumentRule::ends_with_id}); },
               {"which is -1", "vocabulary of 9"});
  expect_error(
      [&] { make(ten, {.context = 4, .vocab = 9, .documents = DocumentRule::begins_with_id, .end_of_text = 9}); },
      {"which is 9"});
  expect_error([&] { make(ten, {.context = 4, .vocab = 9, .documents = DocumentRule::index}); },
               {"does not say", "Megatron"});
  expect_error([&] { Loader({}, {.context = 4, .vocab = 9}, 1); }, {"no data"});
  expect_error([&] { one(ten, {.context = 4, .vocab = 10}).batch(-1, 1); }, {"from -1"});
  expect_error([&] { one(ten, {.context = 4, .vocab = 10}).batch(0, 0); }, {"0 rows"});
  expect_error([&] { one(ten, {.context = 4, .vocab = 10}).samples_per_epoch(1); }, {"source 1 of 1"});
  expect_error([&] { ValidationWindows(Dataset(counting(1)), {.context = 4, .vocab = 10}); }, {"1 token"});
  expect_error([&] { ValidationWindows(ten, {.context = 4, .vocab = 10}).batch(2, 2); }, {"windows 2 to 4 of 3"});
  expect_error([&] { split_tail(ten, 1.0); }, {"fraction 1"});
  expect_error([&] { split_tail(Dataset(counting(1)), 0.5); }, {"one part empty"});
  expect_error([&] { Dataset(std::vector<Shard>{}); }, {"no shards"});
  expect_error([&] { ten.slice(5, 5); }, {"slice 5 to 5"});
  Ids out(3);
  expect_error([&] { ten.read(8, out, 10); }, {"tokens 8 to 11 of 10"});
}

Shard shard_of(const TempFolder& folder, const std::string& name, ShardKind kind, const Ids& ids,
               const std::vector<int64_t>& document_ends = {}) {
  ShardWriter writer(folder / name, kind, 2);
  int64_t begin = 0;
  for (int64_t end : document_ends) {
    writer.append(std::span(ids).subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin)));
    writer.end_document();
    begin = end;
  }
  writer.append(std::span(ids).subspan(static_cast<size_t>(begin)));
  writer.close();
  return Shard::open(folder / name, {.raw_width = 2});
}

constexpr int32_t kEnd = 9;

// The rule is told by format and by the two ends of a source; a source may begin and end inside a document.
TEST(DocumentRules, AreToldByTheFormatOfTheShards) {
  TempFolder folder;
  auto rule = [&](ShardKind kind, const Ids& ids, std::optional<int32_t> end = kEnd) {
    return document_rule_of(Dataset({shard_of(folder, "a.bin", kind, ids)}), end, 10);
  };
  const Ids begins = {9, 1, 2, 9, 3, 4}, continues = {2, 3, 9, 1, 9, 4}, ends = {1, 2, 9, 3, 9},
            is_marked_on_both = {9, 1, 9};
  EXPECT_EQ(rule(ShardKind::header, begins), DocumentRule::begins_with_id);
  EXPECT_EQ(rule(ShardKind::header, continues), DocumentRule::begins_with_id) << "split inside a document";
  EXPECT_EQ(rule(ShardKind::header, ends), DocumentRule::ends_with_id);
  EXPECT_EQ(rule(ShardKind::header, is_marked_on_both), DocumentRule::begins_with_id);
  EXPECT_EQ(rule(ShardKind::raw, begins), DocumentRule::begins_with_id);
  EXPECT_EQ(rule(ShardKind::raw, continues), DocumentRule::ends_with_id);
  EXPECT_EQ(rule(ShardKind::raw, ends), DocumentRule::ends_with_id);
  for (ShardKind kind : {ShardKind::raw, ShardKind::header, ShardKind::megatron})
    EXPECT_EQ(rule(kind, begins, std::nullopt), DocumentRule::none);
  Shard pair = shard_of(folder, "b.bin", ShardKind::megatron, begins, {3});
  EXPECT_EQ(document_rule_of(Dataset({pair}), kEnd, 10), DocumentRule::index);
  EXPECT_EQ(document_rule_of(Dataset({shard_of(folder, "c.bin", ShardKind::megatron, begins)}), kEnd, 10),
            DocumentRule::none);
  expect_error(
      [&] {
        document_rule_of(Dataset({pair, shard_of(folder, "d.bin", ShardKind::raw, begins)}), kEnd, 10);
      },
      {"b.bin is megatron", "d.bin is raw", "two sources"});
}

// Shards that Weft has tokenised are known by their record, whichever of them are read.
TEST(DocumentRules, KnowWhatWeftHasTokenised) {
  TempFolder folder;
  shard_of(folder, "corpus_000001.bin", ShardKind::header, {2, 3, 9, 1, 9, 4});
  auto rule = [&] { return document_rule_of(Dataset({Shard::open(folder / "corpus_000001.bin")}), 9, 10); };
  EXPECT_EQ(rule(), DocumentRule::begins_with_id);
  test::write_bytes(folder / "corpus.json", "{\"kind\": \"weft tokenize 1\"}");
  EXPECT_EQ(rule(), DocumentRule::ends_with_id);
  test::write_bytes(folder / "corpus.json", "[]");
  EXPECT_EQ(rule(), DocumentRule::begins_with_id);
}

// Sources that mark documents in different ways, each with walls where its own marks stand.
TEST(Loader, TakesEverySourceByItsOwnRule) {
  Ids begins = {5, 6, 9, 1, 2, 9, 3, 4, 5}, ends = {1, 2, 9, 3, 4, 9, 6, 7, 8};
  Loader loader({{Dataset(begins), 1, DocumentRule::begins_with_id},
                 {Dataset(ends), 1, DocumentRule::ends_with_id},
                 {Dataset(counting(9)), 1, DocumentRule::none}},
                {.context = 8, .vocab = 10, .end_of_text = 9}, 1);
  std::map<int64_t, Batch> of_source;
  for (int64_t sample = 0; sample < 3; ++sample) {
    Loader::Place at = loader.place(sample);
    EXPECT_EQ(at.begin, 0);
    of_source.emplace(at.source, loader.batch(sample, 1));
  }
  ASSERT_EQ(of_source.size(), 3u);
  EXPECT_EQ(row(of_source.at(0).documents), (Ids{0, 0, 1, 1, 1, 2, 2, 2}));
  EXPECT_EQ(row(of_source.at(0).targets), (Ids{6, -1, 1, 2, -1, 3, 4, 5}));
  EXPECT_EQ(row(of_source.at(1).documents), (Ids{0, 0, 0, 1, 1, 1, 2, 2}));
  EXPECT_EQ(row(of_source.at(1).targets), (Ids{2, 9, -1, 4, 9, -1, 7, 8}));
  EXPECT_EQ(row(of_source.at(2).documents), Ids(8, 0));
}

// Micro-batch i of all ranks, one rank behind the other, is micro-batch i of one rank with all rows.
TEST(RankShare, RanksTogetherHaveTheMicroBatchesOfOneRank) {
  Loader loader = one(Dataset(counting(5000)), {.context = 7, .vocab = 5000});
  auto source = [&](int64_t first, int64_t count) { return loader.batch(first, count); };
  for (int ranks : {1, 2, 3, 4, 6})
    for (int64_t micro_batch : {0, 1, 3, 5}) {
      const int64_t all_at_once = micro_batch * ranks;
      const auto of_one = RankShare{.micro_batch = all_at_once}.rows_of(36, 24);
      std::vector<Ids> got(24 * 5), want;
      for (int rank = 0; rank < ranks; ++rank) {
        const RankShare share{.rank = rank, .ranks = ranks, .micro_batch = micro_batch};
        const auto mine = share.rows_of(36, 24);
        ASSERT_EQ(mine.size(), of_one.size());
        std::vector<Ids> rows;
        append(rows, samples_of_rank(source, share)(36, 24));
        ASSERT_EQ(rows.size(), 24u / static_cast<size_t>(ranks) * 5);
        size_t next = 0;
        for (size_t i = 0; i < mine.size(); ++i) {
          EXPECT_EQ(mine[i].count * ranks, of_one[i].count);
          EXPECT_EQ(mine[i].first, of_one[i].first + rank * mine[i].count);
          for (size_t at = static_cast<size_t>(mine[i].first - 36) * 5, n = static_cast<size_t>(mine[i].count) * 5; n;
               --n)
            got[at++] = rows[next++];
        }
      }
      append(want, loader.batch(36, 24));
      EXPECT_EQ(got, want) << ranks << " ranks, micro-batches of " << micro_batch;
    }
}

TEST(RankShare, RefusesRanksThatDoNotDivideTheRows) {
  expect_error([] { RankShare{.rank = 1, .ranks = 5}.rows_of(0, 12); },
               {"12 rows of a step do not divide among 5 ranks", "use 1, 2, 3, 4, 6, 12 ranks, or a multiple of 5"});
  expect_error([] { RankShare{.rank = 2, .ranks = 2}.rows_of(0, 12); }, {"rank 2 of 2"});
  const std::vector<Batch> batches = {{.tokens = Tensor::zeros({1, 3}, kI32), .targets = Tensor::zeros({1, 3}, kI32)},
                                      {.tokens = Tensor::zeros({1, 4}, kI32), .targets = Tensor::zeros({1, 3}, kI32)}};
  expect_error([&] { stacked(batches); }, {"[1, 3] i32 cpu and [1, 4] i32 cpu do not go together"});
  expect_error([] { stacked({}); }, {"there are none"});
}

}  // namespace
}  // namespace weft::data
