// Text, JSONL and gzip to shards: the same ids whatever the chunks, threads, shards and interruptions.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "tests/data/tokenize_support.h"
#include "weft/core/parallel.h"

namespace weft::data {
namespace {

using test::expect_error;
using test::read_bytes;
using test::TempFolder;
using test::write_bytes;

TEST(Tokenize, GivesTheSameShardsForAllChunksAndThreads) {
  TempFolder folder;
  EndedBytes tokenizer;
  std::vector<std::string> texts = {words(Rng(1), 3000), "", words(Rng(2), 50) + "end"};
  std::vector<std::string> paths;
  for (size_t i = 0; i < texts.size(); ++i) write_bytes(paths.emplace_back(folder / str("in", i, ".txt")), texts[i]);
  Ids expected = joined(tokenizer, {texts[0], texts[2]});
  std::string first_bytes;
  int threads = num_threads();
  for (int64_t chunk : {1, 16, 333, 1 << 20})
    for (int count : {1, 3}) {
      set_num_threads(count);
      TokenizeResult result = tokenize_files(
          paths, tokenizer,
          {.output = folder / str("out", chunk, "_", count), .shard_tokens = 5000, .chunk_bytes = chunk});
      EXPECT_EQ(result.shards.size(), expected.size() / 5000 + 1);
      EXPECT_EQ(result.tokens, static_cast<int64_t>(expected.size()));
      EXPECT_EQ(result.documents, 2);
      EXPECT_EQ(result.bytes, static_cast<int64_t>(texts[0].size() + texts[2].size()));
      EXPECT_EQ(ids_of(result), expected);
      std::string bytes = read_bytes(result.shards[1]);
      if (first_bytes.empty()) first_bytes = bytes;
      EXPECT_EQ(bytes, first_bytes);
    }
  set_num_threads(threads);
}

TEST(Tokenize, TakesOneDocumentPerJsonLine) {
  TempFolder folder;
  EndedBytes tokenizer;
  std::vector<std::string> texts = {"one \u00e9", "two\nlines", "", "four"};
  std::string lines = "\n";
  for (const std::string& text : texts) lines += nlohmann::json{{"id", 3}, {"body", text}}.dump() + "\r\n \n";
  lines += nlohmann::json{{"body", "no newline"}}.dump();
  write_bytes(folder / "in.jsonl", lines);
  for (int64_t chunk : {1, 20, 1000}) {
    TokenizeResult result =
        tokenize_files({folder / "in.jsonl"}, tokenizer,
                       {.output = folder / str("out", chunk), .text = {.field = "body"}, .chunk_bytes = chunk});
    EXPECT_EQ(ids_of(result), joined(tokenizer, {texts[0], texts[1], texts[3], "no newline"}));
    EXPECT_EQ(result.documents, 4);
  }
}

TEST(Tokenize, SeparatesDocumentsAtBlankLines) {
  TempFolder folder;
  EndedBytes tokenizer;
  write_bytes(folder / "in.txt", "\n\none\nstill one\n\n \t\r\n\ntwo\r\n\r\nthree");
  for (int64_t chunk : {1, 7, 1000}) {
    TokenizeResult result =
        tokenize_files({folder / "in.txt"}, tokenizer,
                       {.output = folder / str("out", chunk), .text = {.blank_lines = true}, .chunk_bytes = chunk});
    EXPECT_EQ(ids_of(result), joined(tokenizer, {"one\nstill one", "two\r", "three"}));
  }
}

TEST(Tokenize, ReadsGzip) {
  TempFolder folder;
  EndedBytes tokenizer;
  std::string text = words(Rng(3), 4000);
  write_gzip(folder / "in.dict.dz", text);
  write_gzip(folder / "in.jsonl.gz", "{\"text\": \"a b\"}\n");
  TokenizeResult result = tokenize_files({folder / "in.dict.dz", folder / "in.jsonl.gz"}, tokenizer,
                                         {.output = folder / "out", .chunk_bytes = 500});
  EXPECT_EQ(ids_of(result), joined(tokenizer, {text, "a b"}));
}

TEST(Tokenize, KeepsDocumentsOfTokenizersWithoutEndInMegatronShards) {
  TempFolder folder;
  auto bytes = make_byte_tokenizer();
  write_bytes(folder / "in.jsonl", "{\"text\": \"abc\"}\n{\"text\": \"de\"}\n{\"text\": \"fghi\"}\n");
  TokenizeResult result = tokenize_files({folder / "in.jsonl"}, *bytes, {.output = folder / "out", .shard_tokens = 4});
  ASSERT_EQ(result.shards.size(), 2u);  // a shard ends with the document that fills it
  Shard shard = Shard::open(result.shards[0]);
  EXPECT_EQ(shard.kind(), ShardKind::megatron);
  EXPECT_EQ(shard.num_documents(), 2);
  EXPECT_EQ(shard.document_begin(1), 3);
  EXPECT_EQ(bytes->decode(ids_of(result)), "abcdefghi");
  expect_error(
      [&] { tokenize_files({folder / "in.jsonl"}, *bytes, {.output = folder / "raw", .kind = ShardKind::raw}); },
      {"in.jsonl", "bytes has no end-of-text id", "Megatron"});
}

TEST(Tokenize, GoesOnWhereItWasStopped) {
  EndedBytes tokenizer;
  int threads = num_threads();
  set_num_threads(1);  // many tiny steps
  std::string lines;
  for (uint64_t i = 0; i < 60; ++i) lines += nlohmann::json{{"text", words(Rng(i), 5 + i)}}.dump() + "\n";
  for (ShardKind kind : {ShardKind::raw, ShardKind::header, ShardKind::megatron}) {
    TempFolder folder;
    write_bytes(folder / "a.jsonl", lines);
    write_bytes(folder / "b.txt", words(Rng(99), 500));
    write_gzip(folder / "c.txt.gz", words(Rng(98), 500));
    std::vector<std::string> paths = {folder / "a.jsonl", folder / "b.txt", folder / "c.txt.gz"};
    TokenizeOptions options{.output = folder / "whole", .kind = kind, .shard_tokens = 1500, .chunk_bytes = 100};
    TokenizeResult whole = tokenize_files(paths, tokenizer, options);
    for (int stop : {1, 2, 4}) {
      options.output = folder / str("part", stop);
      TokenizeResult result;
      int interruptions = 0;
      for (bool is_done = false; !is_done;) {
        int calls = 0;
        options.progress = [&](int64_t, int64_t) {
          if (++calls == stop + 3 * interruptions) throw 7;  // as if killed; later each time
        };
        try {
          result = tokenize_files(paths, tokenizer, options);
          is_done = true;
        } catch (int) { ++interruptions; }
      }
      EXPECT_GT(interruptions, 0);
      ASSERT_EQ(result.shards.size(), whole.shards.size());
      for (size_t i = 0; i < whole.shards.size(); ++i)
        EXPECT_EQ(read_bytes(result.shards[i]), read_bytes(whole.shards[i]));
      EXPECT_EQ(result.tokens, whole.tokens);
      EXPECT_EQ(result.documents, whole.documents);
      EXPECT_EQ(result.bytes, whole.bytes);
    }
  }
  set_num_threads(threads);
}

TEST(Tokenize, ReturnsFinishedWorkAndRefusesAnother) {
  TempFolder folder;
  EndedBytes tokenizer;
  write_bytes(folder / "in.txt", "some text");
  TokenizeOptions options{.output = folder / "deep/er/out"};
  TokenizeResult first = tokenize_files({folder / "in.txt"}, tokenizer, options);
  auto written = std::filesystem::last_write_time(first.shards[0]);
  TokenizeResult again = tokenize_files({folder / "in.txt"}, tokenizer, options);
  EXPECT_EQ(again.shards, first.shards);
  EXPECT_EQ(again.tokens, 10);
  EXPECT_EQ(std::filesystem::last_write_time(first.shards[0]), written);
  expect_error([&] { tokenize_files({folder / "in.txt"}, *make_byte_tokenizer(), options); },
               {"out.json", "another tokenizer"});
  expect_error(
      [&] {
        TokenizeOptions other = options;
        other.shard_tokens = 5;
        tokenize_files({folder / "in.txt"}, tokenizer, other);
      },
      {"out.json", "other options"});
  std::filesystem::resize_file(first.shards[0], 1030);
  expect_error([&] { tokenize_files({folder / "in.txt"}, tokenizer, options); }, {"out_000000.bin", "truncated"});
  write_bytes(folder / "in.txt", "some more text");
  expect_error([&] { tokenize_files({folder / "in.txt"}, tokenizer, options); }, {"files changed"});
  write_bytes(options.output + ".json", "{\"kind\": \"weft tokenize 1\"}");
  expect_error([&] { tokenize_files({folder / "in.txt"}, tokenizer, options); }, {"out.json", "damaged"});
  write_bytes(options.output + ".json", "[]");
  expect_error([&] { tokenize_files({folder / "in.txt"}, tokenizer, options); }, {"out.json", "not a record"});
  std::filesystem::remove(options.output + ".json");
  expect_error([&] { tokenize_files({folder / "in.txt"}, tokenizer, options); }, {"out_000000.bin exists"});
}

TEST(Tokenize, TellsProgressInBytesOfTheFiles) {
  TempFolder folder;
  write_bytes(folder / "a.txt", std::string(10000, 'a'));
  write_gzip(folder / "b.txt.gz", std::string(100000, 'b'));
  int64_t size = 10000 + static_cast<int64_t>(std::filesystem::file_size(folder / "b.txt.gz")), last = 0, calls = 0;
  TokenizeOptions options{.output = folder / "out", .chunk_bytes = 1000};
  options.progress = [&](int64_t done, int64_t total) {
    EXPECT_EQ(total, size);
    EXPECT_GE(done, last);
    EXPECT_LE(done, total);
    last = done;
    ++calls;
  };
  tokenize_files({folder / "a.txt", folder / "b.txt.gz"}, *make_byte_tokenizer(), options);
  EXPECT_EQ(last, size);
  EXPECT_GT(calls, 3);
}

TEST(Tokenize, FindsTheAlphabetOfFiles) {
  TempFolder folder;
  write_bytes(folder / "a.jsonl", "{\"text\": \"b\\u00e9\"}\n{\"text\": \"\\ud83d\\ude00a\"}\n");
  write_bytes(folder / "b.txt", "z\nb");
  Alphabet alphabet = alphabet_of_files({folder / "a.jsonl", folder / "b.txt"});
  EXPECT_EQ(alphabet, (Alphabet{U'\n', U'a', U'b', U'z', U'\u00e9', U'\U0001f600'}));
  EXPECT_EQ(tokenize_files({folder / "a.jsonl", folder / "b.txt"}, *make_character_tokenizer(alphabet),
                           {.output = folder / "out"})
                .tokens,
            7);
}

TEST(Tokenize, TakesTextWithSomeInvalidBytes) {
  TempFolder folder;
  EndedBytes tokenizer;
  std::string text = "\xff\xfd few bytes", latin1;
  for (int i = 0; i < 4000; ++i) latin1 += "na\xefve caf\xe9 au lait ";
  for (const std::string& content : {text, latin1, std::string("\xef\xbb\xbf") + "with a mark"})
    for (int64_t chunk : {10, 1 << 20}) {
      std::string path = folder / "in.txt";
      write_bytes(path, content);
      Ids ids = ids_of(tokenize_files(
          {path}, tokenizer, {.output = folder / str("out", content.size(), "_", chunk), .chunk_bytes = chunk}));
      EXPECT_EQ(ids, joined(tokenizer, {content}));
    }
  std::string chinese;
  for (int i = 0; i < 100000; ++i) chinese += "\xe4\xb8\xad";
  require_text(chinese, "in.txt");
  require_text(chinese.substr(1, 200000), "cut on both sides");
}

// One of several processes with different texts gets the name; the others say so, or that it belongs to other inputs.
TEST(Tokenize, IsDoneByOneProcessAtATime) {
  EndedBytes tokenizer;
  for (int round = 0; round < 4; ++round) {
    TempFolder folder;
    std::vector<pid_t> children;
    std::vector<std::string> texts;
    for (uint64_t i = 0; i < 4; ++i) texts.push_back(words(Rng(i), 20000));
    for (size_t i = 0; i < texts.size(); ++i) write_bytes(folder / str("in", i), texts[i]);
    for (size_t i = 0; i < texts.size(); ++i) {
      pid_t child = ::fork();
      if (child != 0) {
        children.push_back(child);
        continue;
      }
      set_num_threads(1);
      int code = 2;
      try {
        tokenize_files({folder / str("in", i)}, tokenizer,
                       {.output = folder / "out", .shard_tokens = 3000, .chunk_bytes = 500});
        code = 0;
      } catch (const Error& error) {
        std::string text = error.what();
        bool is_clear = text.find("another process is writing") != std::string::npos ||
                        text.find("other inputs") != std::string::npos;
        code = is_clear ? 1 : 3;
      }
      ::_exit(code);
    }
    size_t winner = texts.size();
    for (size_t i = 0; i < children.size(); ++i) {
      int status = 0;
      ::waitpid(children[i], &status, 0);
      ASSERT_TRUE(WIFEXITED(status));
      EXPECT_LE(WEXITSTATUS(status), 1);
      if (WEXITSTATUS(status) != 0) continue;
      EXPECT_EQ(winner, texts.size()) << "two processes hold one name";
      winner = i;
    }
    ASSERT_LT(winner, texts.size());
    auto result = tokenized_before(folder / "out");
    ASSERT_TRUE(result);
    EXPECT_EQ(ids_of(*result), joined(tokenizer, {texts[winner]}));
    EXPECT_FALSE(std::filesystem::exists(folder / "out.lock"));
  }
}

// Processes that want the same shards wait for the one that makes them.
TEST(Tokenize, WaitsForTheSameWorkOfAnotherProcess) {
  TempFolder folder;
  EndedBytes tokenizer;
  std::string text = words(Rng(3), 20000);
  write_bytes(folder / "in", text);
  TokenizeOptions options{.output = folder / "out", .shard_tokens = 3000, .chunk_bytes = 500, .waits = true};
  std::vector<pid_t> children;
  for (int i = 0; i < 4; ++i) {
    pid_t child = ::fork();
    if (child != 0) {
      children.push_back(child);
      continue;
    }
    set_num_threads(1);
    try {
      TokenizeResult result = tokenize_files({folder / "in"}, tokenizer, options);
      ::_exit(ids_of(result) == joined(tokenizer, {text}) ? 0 : 1);
    } catch (...) { ::_exit(2); }
  }
  for (pid_t child : children) {
    int status = 0;
    ::waitpid(child, &status, 0);
    EXPECT_EQ(status, 0);
  }
}

TEST(Tokenize, EncodesTinyShakespeareWithGpt2AsAWhole) {
  WEFT_NEED_SHARED("tinyshakespeare.txt");
  std::string files = test::shared_data() + "/gpt2_tokenizer";
  auto gpt2 = make_gpt2_tokenizer(files + "/encoder.json", files + "/vocab.bpe");
  TempFolder folder;
  TokenizeResult result = tokenize_files({shared_file}, *gpt2, {.output = folder / "out", .chunk_bytes = 10007});
  Ids expected = gpt2->encode(read_bytes(shared_file));
  expected.push_back(50256);
  EXPECT_EQ(ids_of(result), expected);
}

}  // namespace
}  // namespace weft::data
