// Raw shards and shards with a header: byte vectors, round trips, 64-bit offsets, damaged files.
#include "weft/data/shards.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <csignal>
#include <numeric>

#include "tests/data/support.h"
#include "tests/support/random.h"

namespace weft::data {
namespace {

using test::expect_error;
using test::TempFolder;
using test::write_bytes;
using Ids = std::vector<int32_t>;

Ids all_ids(const Shard& shard) {
  Ids ids(static_cast<size_t>(shard.num_tokens()));
  shard.read(0, ids);
  return ids;
}

void write_shard(const std::string& path, ShardKind kind, int width, const Ids& ids) {
  ShardWriter writer(path, kind, width);
  writer.append(ids);
  writer.close();
}

std::string header(std::vector<int32_t> words) {
  words.resize(256);
  return std::string(reinterpret_cast<const char*>(words.data()), 1024);
}

TEST(Shards, WriteTheHeaderFormatByteForByte) {
  TempFolder folder;
  std::string path = folder / "a.bin";
  write_shard(path, ShardKind::header, 2, {50256, 15496, 995});
  std::string bytes = test::read_bytes(path);
  EXPECT_EQ(bytes, header({20240520, 1, 3}) + std::string("\x50\xc4\x88\x3c\xe3\x03", 6));
  EXPECT_EQ(bytes.substr(0, 4), "\x88\xd8\x34\x01");
  write_shard(path, ShardKind::header, 4, {1, 70000});
  bytes = test::read_bytes(path);
  EXPECT_EQ(bytes, header({20240801, 7, 2}) + std::string("\x01\0\0\0\x70\x11\x01\0", 8));
  EXPECT_EQ(bytes.substr(0, 4), "\xa1\xd9\x34\x01");
  write_shard(path, ShardKind::raw, 2, {258, 65535});
  EXPECT_EQ(test::read_bytes(path), "\x02\x01\xff\xff");
}

TEST(Shards, ReadBackWhatWasWritten) {
  TempFolder folder;
  Ids ids(100001);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(Rng(1).below(65536, i));
  for (ShardKind kind : {ShardKind::raw, ShardKind::header})
    for (int width : {2, 4}) {
      std::string path = folder / str(kind, width);
      ShardWriter writer(path, kind, width);
      for (size_t at = 0; at < ids.size(); at += 999)
        writer.append(std::span(ids).subspan(at, std::min<size_t>(999, ids.size() - at)));
      EXPECT_FALSE(std::filesystem::exists(path)) << "nothing appears before close()";
      writer.close();
      Shard shard = Shard::open(path, {.raw_width = kind == ShardKind::raw ? width : 0});
      EXPECT_EQ(shard.kind(), kind);
      EXPECT_EQ(shard.type(), width == 2 ? "u16" : "u32");
      EXPECT_EQ(all_ids(shard), ids);
      Ids part(10);
      shard.read(99991, part);
      EXPECT_EQ(part, Ids(ids.end() - 10, ids.end()));
      EXPECT_EQ(check_ids(shard, 65536), *std::max_element(ids.begin(), ids.end()));
    }
}

TEST(Shards, ReadAFileOfFiveGibibytes) {
  TempFolder folder;
  const int64_t bytes = int64_t{5} << 30;
  std::string raw = folder / "raw.bin", with_header = folder / "header.bin";
  auto make = [](const std::string& path, int64_t size, int64_t at, std::string_view content) {
    int file = ::open(path.c_str(), O_RDWR | O_CREAT, 0600);
    EXPECT_EQ(::ftruncate(file, size), 0);
    EXPECT_EQ(::pwrite(file, content.data(), content.size(), at), static_cast<ssize_t>(content.size()));
    ::close(file);
  };
  make(raw, bytes, bytes - 4, std::string_view("\x07\x00\x09\x00", 4));
  Shard shard = Shard::open(raw, {.raw_width = 2});
  EXPECT_EQ(shard.num_tokens(), bytes / 2);
  Ids ids(3);
  shard.read(bytes / 2 - 3, ids);
  EXPECT_EQ(ids, (Ids{0, 7, 9}));
  expect_error([&] { shard.read(bytes / 2 - 2, ids); }, {"raw.bin", "2684354560"});

  auto count = static_cast<int32_t>((bytes - 1024) / 4);
  make(with_header, bytes, bytes - 4, std::string_view("\x05\x00\x01\x00", 4));
  make(with_header, bytes, 0, header({20240801, 7, count}));
  shard = Shard::open(with_header);
  EXPECT_EQ(shard.num_tokens(), count);
  shard.read(count - 3, ids);
  EXPECT_EQ(ids, (Ids{0, 0, 65541}));
}

TEST(Shards, TakeTheWidthFromTheHeaderIfThereIsOne) {
  TempFolder folder;
  write_shard(folder / "a.bin", ShardKind::header, 4, {70000, 1});
  EXPECT_EQ(all_ids(Shard::open(folder / "a.bin", {.raw_width = 2})), (Ids{70000, 1}));
}

TEST(Shards, FindPlantedBadIds) {
  TempFolder folder;
  std::string path = folder / "a.bin";
  Ids ids(9000000, 3);
  ids[8700000] = 300;
  ids[8999999] = 299;
  ids[17] = 255;
  write_shard(path, ShardKind::header, 2, ids);
  Shard shard = Shard::open(path);
  expect_error([&] { check_ids(shard, 256); }, {path, "id 300 at token 8700000", "vocabulary of 256"});
  expect_error([&] { check_ids(shard, 255); }, {"id 255 at token 17"});
  EXPECT_EQ(check_ids(shard, 301), 300);
  Ids out(10);
  expect_error([&] { shard.read(8699995, out, 256); }, {"id 300 at token 8700000"});
  shard.read(8699985, out, 256);
  write_bytes(path, header({20240801, 7, 1}) + "\xff\xff\xff\xff");
  expect_error([&] { Shard::open(path).read(0, std::span(out).first(1)); }, {"id 4294967295 at token 0"});
}

TEST(Shards, FindTheLargestIdOfEveryType) {
  TempFolder folder;
  Ids ids(3000001, 3);
  ids[1500000] = 40000;
  write_shard(folder / "a.bin", ShardKind::raw, 2, ids);
  write_shard(folder / "b.bin", ShardKind::raw, 4, ids);
  for (Shard shard : {Shard::open(folder / "a.bin", {.raw_width = 2}), Shard::open(folder / "b.bin", {.raw_width = 4}),
                      Shard::in_memory(ids)}) {
    EXPECT_EQ(shard.largest_id(0, shard.num_tokens(), 40001), 40000);
    EXPECT_EQ(shard.largest_id(1500001, 1500000, 4), 3);
    EXPECT_EQ(shard.largest_id(7, 0, 1), 0);
    expect_error([&] { shard.largest_id(0, shard.num_tokens(), 40000); },
                 {"id 40000 at token 1500000", "of 40000 ids"});
    expect_error([&] { shard.largest_id(1, shard.num_tokens(), 50000); }, {"tokens 1 to 3000002"});
  }
  expect_error([&] { Shard::in_memory({1, -1, 5}).largest_id(0, 3, 4); }, {"id -1 at token 1"});
}

TEST(IdScan, NamesTheFileThePlaceTheIdAndTheVocabulary) {
  TempFolder folder;
  Ids ids(5000000, 3);
  write_shard(folder / "good.bin", ShardKind::header, 2, ids);
  ids[4999999] = 256;
  write_shard(folder / "bad.bin", ShardKind::header, 2, ids);
  Shard good = Shard::open(folder / "good.bin"), bad = Shard::open(folder / "bad.bin");
  IdScan({good, bad}, 257).wait();
  IdScan scan({good, bad}, 256);
  for (int i = 0; i < 2; ++i)
    expect_error([&] { scan.wait(); }, {"bad.bin", "id 256 at token 4999999", "vocabulary of 256 ids"});
  expect_error([&] { scan.look(); }, {"id 256 at token 4999999"});
  IdScan stopped(std::vector<Shard>(100, good), 256);  // its end stops it
  stopped.look();
}

TEST(Shards, RefuseFilesThatAreDamaged) {
  TempFolder folder;
  std::string path = folder / "a.bin";
  auto error = [&](std::string content, std::initializer_list<std::string_view> parts, int raw_width = 0) {
    write_bytes(path, content);
    expect_error([&] { Shard::open(path, {.raw_width = raw_width}); }, {path});
    expect_error([&] { Shard::open(path, {.raw_width = raw_width}); }, parts);
  };
  std::string six = "\1\1\1\1\1\1";
  error("", {"empty"});
  error("", {"empty"}, 2);
  error(six, {"wrong magic 16843009", "20240520", "20240801", "width"});
  error("abc", {"wrong magic"});
  error("abc", {"3 bytes are not whole ids of 2"}, 2);
  error(six, {"raw width 3"}, 3);
  error(header({20240522, 1, 3}), {"multiple-choice"});
  error(header({20240520, 1, 3}).substr(0, 1000), {"truncated", "1000 bytes"});
  error(header({20240520, 2, 3}) + six, {"version 2", "only 1"});
  error(header({20240801, 1, 3}) + six, {"version 1", "only 7"});
  error(header({20240520, 1, 4}) + six, {"truncated", "6 bytes of ids", "need 8"});
  error(header({20240520, 1, 2}) + six, {"too long", "need 4"});
  error(header({20240801, 7, 3}) + six, {"wrong width", "3 ids of 4 bytes"});
  error(header({20240520, 1, 0}), {"empty"});
  error(header({20240520, 1, -5}) + six, {"-5 tokens"});
  expect_error([&] { Shard::open(folder / "absent.bin"); }, {"absent.bin", "No such file"});
  expect_error([&] { Shard::open(folder.path()); }, {"not a regular file"});
  expect_error([&] { Shard::in_memory({}); }, {"ids in memory: empty"});
  expect_error([&] { Shard::in_memory({1, 2}, {0, 3}); }, {"ascend"});
}

TEST(Shards, NeverCrashOnDamagedFiles) {
  TempFolder folder;
  std::string path = folder / "a.bin", good = header({20240520, 1, 40}) + std::string(80, '\3');
  Rng rng = Rng(test::seed())["damage"];
  for (uint64_t i = 0; i < 200; ++i) {
    std::string bytes = good;
    if (i % 4 == 0) bytes.resize(rng[i].below(bytes.size() + 1, 0));
    for (uint64_t j = 1; j < 4; ++j)
      if (!bytes.empty())
        bytes[rng[i].below(std::min<size_t>(bytes.size(), j == 3 ? 2000 : 12), j)] =
            static_cast<char>(rng[i].below(256, 9 + j));
    write_bytes(path, bytes);
    try {
      Shard shard = Shard::open(path, {.raw_width = i % 2 ? 2 : 0});
      check_ids(shard, 1000);
    } catch (const Error& error) { EXPECT_FALSE(error.fix().empty()); }
  }
}

TEST(ShardWriter, RefusesIdsThatDoNotFit) {
  TempFolder folder;
  ShardWriter writer(folder / "a.bin", ShardKind::header, 2);
  expect_error([&] { writer.append(Ids{1, 65536}); }, {"a.bin", "id 65536", "2 bytes"});
  expect_error([&] { writer.append(Ids{-1}); }, {"id -1"});
  expect_error([&] { writer.close(); }, {"a.bin", "empty"});
  expect_error([&] { ShardWriter(folder / "a.bin", ShardKind::raw, 3); }, {"width 3"});
  expect_error([&] { ShardWriter(folder / "no/where.bin", ShardKind::raw, 2); }, {"no/where.bin", "No such file"});
  EXPECT_EQ(id_width(65536), 2);
  EXPECT_EQ(id_width(65537), 4);
}

TEST(ShardWriter, LeavesTheOldFileWhenItIsNotClosed) {
  TempFolder folder;
  std::string path = folder / "a.bin";
  write_shard(path, ShardKind::raw, 2, {1, 2, 3});
  {
    ShardWriter writer(path, ShardKind::raw, 2);
    writer.append(Ids(1000000, 9));
  }
  EXPECT_EQ(test::read_bytes(path).size(), 6u);
  EXPECT_FALSE(std::filesystem::exists(path + ".partial"));
}

TEST(ShardWriter, SaysThatTheDiskIsFull) {
  TempFolder folder;
  std::string path = folder / "a.bin";
  write_shard(path, ShardKind::raw, 2, {1, 2, 3});
  rlimit old{}, small{};
  ::getrlimit(RLIMIT_FSIZE, &old);
  small = {1 << 16, old.rlim_max};
  auto handler = std::signal(SIGXFSZ, SIG_IGN);
  ::setrlimit(RLIMIT_FSIZE, &small);
  expect_error([&] { write_shard(path, ShardKind::raw, 2, Ids(100000, 9)); },
               {"cannot write", "a.bin", "File too large", "disk space"});
  ::setrlimit(RLIMIT_FSIZE, &old);
  std::signal(SIGXFSZ, handler);
  EXPECT_EQ(test::read_bytes(path).size(), 6u);
  EXPECT_FALSE(std::filesystem::exists(path + ".partial"));
}

TEST(ShardWriter, RemovesTheIndexOfThePairThatItReplaces) {
  TempFolder folder;
  std::string path = folder / "a.bin";
  for (ShardKind kind : {ShardKind::header, ShardKind::raw}) {
    ShardWriter pair(path, ShardKind::megatron, 2);
    pair.append(Ids{1, 2, 3});
    pair.end_document();
    pair.close();
    ASSERT_TRUE(std::filesystem::exists(folder / "a.idx"));
    write_shard(path, kind, 2, {7, 8, 9});
    EXPECT_FALSE(std::filesystem::exists(folder / "a.idx")) << to_string(kind);
    Shard shard = Shard::open(path, {.raw_width = 2});
    EXPECT_EQ(shard.kind(), kind);
    EXPECT_EQ(all_ids(shard), (Ids{7, 8, 9}));
  }
  write_bytes(folder / "a.idx", "no index of Megatron");
  write_shard(path, ShardKind::header, 2, {7});
  EXPECT_TRUE(std::filesystem::exists(folder / "a.idx")) << "somebody else's file";
  expect_error([&] { ShardWriter(folder / "b.idx", ShardKind::header, 2); }, {"b.idx", "index", ".bin"});
}

TEST(ShardWriter, RefusesDocumentsWhereNoIndexKeepsThem) {
  TempFolder folder;
  for (ShardKind kind : {ShardKind::header, ShardKind::raw}) {
    ShardWriter writer(folder / "a.bin", kind, 2);
    writer.append(Ids{1});
    expect_error([&] { writer.end_document(); }, {"a.bin", "keeps no index of documents", "Megatron"});
  }
}

TEST(ShardWriter, RefusesASecondWriterOfOneFile) {
  TempFolder folder;
  std::string path = folder / "a.bin";
  ShardWriter first(path, ShardKind::header, 2);
  first.append(Ids(100000, 1));
  expect_error([&] { ShardWriter(path, ShardKind::header, 2); }, {"a.bin", "another process is writing it"});
  first.close();
  write_shard(path, ShardKind::header, 2, {5});
  EXPECT_EQ(all_ids(Shard::open(path)), (Ids{5}));
  EXPECT_FALSE(std::filesystem::exists(path + ".partial"));
}

// Writers of different content, in many processes: what stands there is one of them or the other, never both.
TEST(ShardWriter, NeverMixesTheShardsOfSeveralProcesses) {
  TempFolder folder;
  std::string path = folder / "a.bin";
  for (int round = 0; round < 3; ++round) {
    std::vector<pid_t> children;
    for (int32_t id = 1; id <= 4; ++id) {
      pid_t child = ::fork();
      if (child != 0) {
        children.push_back(child);
        continue;
      }
      int written = 0;
      for (int i = 0; i < 10; ++i) try {
          write_shard(path, ShardKind::header, 2, Ids(static_cast<size_t>(200000 + 1000 * id), id));
          ++written;
        } catch (const Error&) {}
      ::_exit(written > 0 ? 0 : 1);
    }
    int num_good = 0;
    for (pid_t child : children) {
      int status = 0;
      ::waitpid(child, &status, 0);
      num_good += WIFEXITED(status) && WEXITSTATUS(status) == 0;
    }
    EXPECT_GE(num_good, 1);
    Ids ids = all_ids(Shard::open(path));
    EXPECT_EQ(ids, Ids(static_cast<size_t>(200000 + 1000 * ids[0]), ids[0]));
    EXPECT_FALSE(std::filesystem::exists(path + ".partial"));
  }
}

TEST(ExpandPath, SortsWhatThePatternNames) {
  TempFolder folder;
  for (const char* name : {"b_1.bin", "b_0.bin", "c.bin"}) write_bytes(folder / name, "x");
  EXPECT_EQ(expand_path(folder / "b_*.bin"), (std::vector<std::string>{folder / "b_0.bin", folder / "b_1.bin"}));
  EXPECT_EQ(expand_path(folder / "c.bin"), (std::vector<std::string>{folder / "c.bin"}));
  expect_error([&] { expand_path(folder / "d_*.bin"); }, {"no file matches", "d_*.bin"});
  expect_error([&] { expand_path(folder / "d.bin"); }, {"no file", "d.bin"});
}

}  // namespace
}  // namespace weft::data
