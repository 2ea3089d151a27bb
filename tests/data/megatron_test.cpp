// Megatron pairs: byte vector, documents, damaged indices.
#include <algorithm>
#include <cstring>

#include "tests/data/support.h"
#include "tests/support/random.h"
#include "weft/data/shards.h"

namespace weft::data {
namespace {

using test::expect_error;
using test::TempFolder;
using test::write_bytes;
using Ids = std::vector<int32_t>;

template <class T>
std::string bytes_of(std::initializer_list<T> values) {
  return std::string(reinterpret_cast<const char*>(values.begin()), values.size() * sizeof(T));
}

std::string index(uint8_t type, std::initializer_list<int32_t> lengths, std::initializer_list<int64_t> offsets,
                  std::initializer_list<int64_t> documents, uint64_t version = 1) {
  return std::string("MMIDIDX\0\0", 9) + bytes_of({version}) + bytes_of({type}) + bytes_of({uint64_t{lengths.size()}}) +
         bytes_of({uint64_t{documents.size()}}) + bytes_of(lengths) + bytes_of(offsets) + bytes_of(documents);
}

const std::string kGood = index(8, {3, 2}, {0, 6}, {0, 1, 2});
const std::string kIds("\1\0\2\0\3\0\4\0\5\0", 10);

TEST(Megatron, WritesThePairByteForByte) {
  TempFolder folder;
  ShardWriter writer(folder / "a.bin", ShardKind::megatron, 2);
  writer.append(Ids{1, 2, 3});
  writer.end_document();
  writer.append(Ids{4, 5});
  writer.end_document();
  writer.close();
  EXPECT_EQ(kGood.size(), 82u);
  EXPECT_EQ(test::read_bytes(folder / "a.idx"), kGood);
  EXPECT_EQ(test::read_bytes(folder / "a.bin"), kIds);
  for (const char* name : {"a.bin", "a.idx"}) {
    Shard shard = Shard::open(folder / name);
    EXPECT_EQ(shard.kind(), ShardKind::megatron);
    Ids ids(5);
    shard.read(0, ids);
    EXPECT_EQ(ids, (Ids{1, 2, 3, 4, 5}));
    EXPECT_EQ(shard.num_documents(), 2);
    EXPECT_EQ(shard.document_begin(1), 3);
    EXPECT_EQ(shard.document_begin(2), 5);
    EXPECT_EQ(shard.next_document(0), 3);
    EXPECT_EQ(shard.next_document(3), 5);
    EXPECT_EQ(shard.next_document(-1), 0);
  }
}

TEST(Megatron, ReadsEveryIntegerTypeAndModes) {
  TempFolder folder;
  auto read = [&](const std::string& idx, const std::string& bin) {
    write_bytes(folder / "a.idx", idx);
    write_bytes(folder / "a.bin", bin);
    Shard shard = Shard::open(folder / "a.idx");
    Ids ids(static_cast<size_t>(shard.num_tokens()));
    shard.read(0, ids);
    return ids;
  };
  EXPECT_EQ(read(index(1, {2}, {0}, {0, 1}), "\x05\xff"), (Ids{5, 255}));
  EXPECT_EQ(read(index(2, {2}, {0}, {0, 1}), "\x05\x7f"), (Ids{5, 127}));
  EXPECT_EQ(read(index(3, {1}, {0}, {0, 1}), "\x05\x01"), (Ids{261}));
  EXPECT_EQ(read(index(4, {1}, {0}, {0, 1}), bytes_of({int32_t{70000}})), (Ids{70000}));
  EXPECT_EQ(read(index(5, {1}, {0}, {0, 1}), bytes_of({int64_t{70001}})), (Ids{70001}));
  EXPECT_EQ(read(kGood + "\1\1", kIds), (Ids{1, 2, 3, 4, 5}));
  expect_error([&] { read(index(2, {1}, {0}, {0, 1}), "\xff"); }, {"id -1 at token 0"});
  expect_error([&] { read(index(5, {1}, {0}, {0, 1}), bytes_of({int64_t{1} << 40})); }, {"id 1099511627776"});
}

TEST(Megatron, KeepsDocumentsOfSeveralSequencesAndEmptyOnes) {
  TempFolder folder;
  write_bytes(folder / "a.idx", index(8, {1, 2, 0, 2}, {0, 2, 6, 6}, {0, 2, 3, 4}));
  write_bytes(folder / "a.bin", kIds);
  Shard shard = Shard::open(folder / "a.bin");
  EXPECT_EQ(shard.num_documents(), 3);
  EXPECT_EQ(shard.document_begin(1), 3);
  EXPECT_EQ(shard.document_begin(2), 3);
  EXPECT_EQ(shard.next_document(2), 3);
  EXPECT_EQ(shard.next_document(3), 5);
}

TEST(Megatron, RefusesIndicesThatAreDamaged) {
  TempFolder folder;
  auto error = [&](const std::string& idx, const std::string& bin, std::initializer_list<std::string_view> parts) {
    write_bytes(folder / "a.idx", idx);
    write_bytes(folder / "a.bin", bin);
    expect_error([&] { Shard::open(folder / "a.idx"); }, parts);
  };
  error("", kIds, {"a.idx", "wrong magic"});
  error("MMIDIDY" + kGood.substr(7), kIds, {"wrong magic", "MMIDIDX"});
  error(kGood.substr(0, 20), kIds, {"truncated", "20 bytes"});
  error(kGood.substr(0, 81), kIds, {"truncated", "2 sequences", "3 document indices"});
  error(kGood + "x", kIds, {"1 bytes behind"});
  error(index(8, {3, 2}, {0, 6}, {0, 1, 2}, 2), kIds, {"version 2"});
  error(index(6, {3, 2}, {0, 6}, {0, 1, 2}), kIds, {"type 6 (floating point)"});
  error(index(77, {3, 2}, {0, 6}, {0, 1, 2}), kIds, {"type 77"});
  error(index(8, {}, {}, {0}), "", {"empty"});
  error(index(8, {0}, {0}, {0, 1}), "", {"empty"});
  error(index(8, {3, -2}, {0, 6}, {0, 1, 2}), kIds, {"sequence 1 has -2 tokens"});
  error(index(8, {3, 2}, {2, 8}, {0, 1, 2}), kIds, {"sequence 0 begins at byte 2"});
  error(index(8, {3, 2}, {0, 8}, {0, 1, 2}), kIds, {"sequence 0 ends at byte 6", "8"});
  error(index(8, {3, 2}, {0, -6}, {0, 1, 2}), kIds, {"sequence"});
  error(index(8, {3, 2}, {0, 6}, {0, 3, 2}), kIds, {"document index 2 is 2"});
  error(index(8, {3, 2}, {0, 6}, {1, 1, 2}), kIds, {"document index 0 is 1"});
  error(index(8, {3, 2}, {0, 6}, {0, 1, 1}), kIds, {"document index 2 is 1 of 2"});
  error(kGood, kIds.substr(0, 8), {"a.bin", "truncated", "8 bytes", "needs 10"});
  error(kGood, kIds + "xx", {"a.bin", "too long"});
  std::string huge = kGood;
  std::memset(huge.data() + 18, 0xff, 16);
  error(huge, kIds, {"truncated", "18446744073709551615"});
  std::filesystem::remove(folder / "a.bin");
  expect_error([&] { Shard::open(folder / "a.idx"); }, {"a.bin", "No such file"});
  expect_error([&] { ShardWriter(folder / "a.tokens", ShardKind::megatron, 2); }, {".bin"});
}

TEST(Megatron, NeverCrashesOnDamagedFiles) {
  TempFolder folder;
  Rng rng = Rng(test::seed())["damage"];
  for (uint64_t i = 0; i < 200; ++i) {
    std::string idx = kGood;
    if (i % 4 == 0) idx.resize(rng[i].below(idx.size() + 1, 0));
    for (uint64_t j = 1; j < 3; ++j)
      if (!idx.empty()) idx[rng[i].below(idx.size(), j)] = static_cast<char>(rng[i].below(i % 2 ? 256 : 4, 9 + j));
    write_bytes(folder / "a.idx", idx);
    write_bytes(folder / "a.bin", kIds);
    try {
      Shard shard = Shard::open(folder / "a.idx");
      check_ids(shard, 1000);
      for (int64_t d = 0; d <= shard.num_documents(); ++d) shard.next_document(shard.document_begin(d));
    } catch (const Error& error) { EXPECT_FALSE(error.fix().empty()); }
  }
}

}  // namespace
}  // namespace weft::data
