// What tokenisation refuses: broken JSON and gzip, files that are no text, and files that changed since.
#include "tests/data/tokenize_support.h"

namespace weft::data {
namespace {

using test::expect_error;
using test::read_bytes;
using test::TempFolder;
using test::write_bytes;

TEST(TokenizeErrors, NameTheFileAndThePlace) {
  TempFolder folder;
  EndedBytes tokenizer;
  int outputs = 0;
  auto error = [&](std::string_view name, std::string_view content, std::initializer_list<std::string_view> parts,
                   int64_t chunk = 10) {
    write_bytes(folder / name, content);
    expect_error(
        [&] {
          tokenize_files({folder / name}, tokenizer, {.output = folder / str("out", outputs++), .chunk_bytes = chunk});
        },
        parts);
  };
  std::string good = "{\"text\": \"ok\"}\n";
  error("a.jsonl", good + good + "{\"text\": }\n" + good + "bad\n", {"a.jsonl:3: not valid JSON"});
  error("a.jsonl", good + good + "{\"text\": }\n" + good + "bad\n", {"a.jsonl:3: not valid JSON"}, 10000);
  error("a.jsonl", good + "[1]\n", {"a.jsonl:2: a JSON array instead of an object"});
  error("a.jsonl", good + "{\"txt\": \"x\"}",
        {"a.jsonl:2: no field \"text\"", "its fields with texts are \"txt\"", "--field", "data.train[0].field"});
  error("a.jsonl", "{\"id\": 5, \"body\": \"x\", \"title\": \"y\"}\n", {"a.jsonl:1:", "texts are \"body\", \"title\""});
  error("a.jsonl", "{\"id\": 5, \"n\": []}\n", {"a.jsonl:1:", "none of its 2 fields is a text"});
  error("a.jsonl", "{\"text\": 5}\n", {"a.jsonl:1:", "is a number, not a text"});
  error("a.jsonl", "{\"text\": \"\xff\"}\n", {"a.jsonl:1: not valid JSON"});
  error("a.jsonl", "\n \n", {"no text in 1 inputs", "a.jsonl"});
  error("a.txt", "", {"no text"});
  write_gzip(folder / "whole.gz", words(Rng(5), 3000));
  std::string packed = read_bytes(folder / "whole.gz");
  error("cut.gz", packed.substr(0, packed.size() / 2), {"cut.gz", "truncated"});
  packed[packed.size() / 2] = static_cast<char>(packed[packed.size() / 2] ^ 0x55);
  error("bad.gz", packed, {"bad.gz", "damaged"});
  write_bytes(folder / "c.txt", "aab");
  expect_error([&] { tokenize_files({folder / "c.txt"}, *make_character_tokenizer({U'a'}), {.output = folder / "c"}); },
               {"c.txt", "U+0062 at byte 2"});
  expect_error([&] { tokenize_files({folder / "absent"}, tokenizer, {.output = folder / "x"}); },
               {"absent", "No such file"});
  expect_error([&] { tokenize_files({folder.path()}, tokenizer, {.output = folder / "y"}); },
               {"cannot read", folder.path()});
  expect_error([&] { tokenize_files({}, tokenizer, {.output = folder / "z"}); }, {"no inputs"});
  expect_error([&] { tokenize_files({folder / "c.txt"}, tokenizer, {}); }, {"no output name"});
  expect_error([&] { tokenize_files({folder / "c.txt"}, tokenizer, {.output = folder / "w", .shard_tokens = 0}); },
               {"shard_tokens is 0"});
  expect_error([&] { tokenize_files({folder / "c.txt"}, tokenizer, {.output = folder / "v", .width = 3}); },
               {"width 3"});
  expect_error([&] { tokenize_files({folder / "c.txt"}, tokenizer, {.output = "/proc/nowhere/x"}); },
               {"/proc/nowhere/x", "cannot create"});
}

std::string gzip_of(const TempFolder& folder, std::string_view content) {
  write_gzip(folder / "member.gz", content);
  return read_bytes(folder / "member.gz");
}

TEST(TokenizeErrors, GzipIsGzipToItsEndOrAnError) {
  TempFolder folder;
  EndedBytes tokenizer;
  int outputs = 0;
  auto tokenize = [&](std::string_view name, const std::string& content, int64_t chunk) {
    write_bytes(folder / name, content);
    return ids_of(
        tokenize_files({folder / name}, tokenizer, {.output = folder / str("out", outputs++), .chunk_bytes = chunk}));
  };
  std::string text = words(Rng(7), 600), one = gzip_of(folder, text), two = gzip_of(folder, "more text"),
              nothing = gzip_of(folder, "");
  for (int64_t chunk : {1, 100, 1 << 20}) {
    EXPECT_EQ(tokenize("a.gz", one + two, chunk), joined(tokenizer, {text + "more text"}));
    EXPECT_EQ(tokenize("a.gz", nothing + two + nothing, chunk), joined(tokenizer, {"more text"}));
    EXPECT_EQ(tokenize("gzip under another name", one, chunk), joined(tokenizer, {text}));
    for (const char* name : {"a.gz", "a.txt.gz", "a.dz", "a.jsonl.gz"})
      for (const char* content : {"plain text", "", "\x1f"})
        expect_error([&] { tokenize(name, content, chunk); }, {name, "is not gzip", "fetch it again"});
    const std::string place = str("from byte ", one.size());
    for (const std::string& junk :
         {std::string("junk"), std::string("\n"), std::string(512, '\0'), std::string("\x1f\x8c")})
      expect_error([&] { tokenize("a.gz", one + junk, chunk); }, {"a.gz", place, "is not gzip"});
    for (size_t cut : {size_t{2}, size_t{9}, one.size() / 2, one.size() - 8, one.size() - 1})
      expect_error([&] { tokenize("a.gz", one.substr(0, cut), chunk); }, {"a.gz", "truncated"});
    expect_error([&] { tokenize("a.gz", one + two.substr(0, 12), chunk); }, {"a.gz", "truncated"});
    std::string bad = one;
    bad[one.size() - 6] = static_cast<char>(bad[one.size() - 6] ^ 1);  // the checksum
    expect_error([&] { tokenize("a.gz", bad, chunk); }, {"a.gz", "damaged gzip data"});
  }
}

TEST(TokenizeErrors, RefuseWhatIsNoTextByName) {
  TempFolder folder;
  EndedBytes tokenizer;
  auto error = [&](std::string_view content, std::initializer_list<std::string_view> parts) {
    for (bool is_packed : {false, true})
      for (const char* name : {"in.txt", "in.jsonl"}) {
        std::string path = folder / (std::string(name) + (is_packed ? ".gz" : ""));
        if (is_packed) write_gzip(path, content);
        else write_bytes(path, content);
        expect_error([&] { tokenize_files({path}, tokenizer, {.output = folder / "out"}); }, parts);
        expect_error([&] { alphabet_of_files({path}); }, parts);
      }
    expect_error([&] { require_text(content, "in.txt"); }, parts);
  };
  using namespace std::string_view_literals;
  error("PAR1\x15\x04\x15"sv, {"in.", "Parquet", "JSONL"});
  error("PK\x03\x04\x14\0"sv, {"zip archive", "unpack"});
  error("\x89PNG\r\n\x1a\n\0\0"sv, {"PNG"});
  error("\x28\xb5\x2f\xfd\x24"sv, {"zstd -d"});
  error("\xfd\x37zXZ\0"sv, {"xz -d"});
  error("BZh91AY&SYxx"sv, {"bzip2"});
  error("%PDF-1.7\n"sv, {"PDF"});
  error("\xff\xfeh\0i\0"sv, {"UTF-16", "iconv"});
  error(std::string(257, 'a') + "ustar", {"tar archive"});
  error("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"sv, {"Git LFS", "git lfs pull"});
  error("\x88\xd8\x34\x01\x01"sv, {"token shard", ".bin"});
  error("text with a zero\0"sv, {"byte 16 is zero"});
  std::string late = words(Rng(8), 50000), cyrillic, binary;
  late[200000] = '\0';
  error(late, {"byte 200000 is zero"});
  for (int i = 0; i < 4000; ++i) cyrillic += i % 6 ? static_cast<char>(0xc0 + i % 61) : ' ';  // KOI8-R
  error(cyrillic, {"no UTF-8 text", "of the 4000 bytes from byte 0", "iconv"});
  error(words(Rng(9), 50000).substr(0, 65536) + cyrillic, {"from byte 65536"});
}

TEST(TokenizeErrors, NameTheFileThatIsNewMissingOrChanged) {
  TempFolder folder;
  EndedBytes tokenizer;
  for (const char* name : {"a.txt", "b.txt", "c.txt"}) write_bytes(folder / name, str("text of ", name));
  std::string a = folder / "a.txt", b = folder / "b.txt", c = folder / "c.txt";
  TokenizeOptions options{.output = folder / "out"};
  tokenize_files({a, b}, tokenizer, options);
  expect_error([&] { tokenize_files({a, b, c}, tokenizer, options); }, {"out.json", "c.txt is new"});
  expect_error([&] { tokenize_files({a}, tokenizer, options); }, {"b.txt is missing"});
  expect_error([&] { tokenize_files({b, a}, tokenizer, options); }, {"another order"});
  write_bytes(b, "other");
  expect_error([&] { tokenize_files({a, b}, tokenizer, options); }, {"b.txt has changed"});
}

TEST(TokenizeErrors, RefuseShardsOfTheNameWithoutTheirRecord) {
  TempFolder folder;
  EndedBytes tokenizer;
  write_bytes(folder / "in.txt", "text");
  for (const char* left : {"out_000003.bin", "out_000000.idx"}) {
    write_bytes(folder / left, "old");
    expect_error([&] { tokenize_files({folder / "in.txt"}, tokenizer, {.output = folder / "out"}); },
                 {left, "exists", "delete the shards"});
    std::filesystem::remove(folder / left);
  }
  write_bytes(folder / "out_more_000000.bin", "of another name");
  EXPECT_EQ(tokenize_files({folder / "in.txt"}, tokenizer, {.output = folder / "out"}).tokens, 5);
}

}  // namespace
}  // namespace weft::data
