// GPT-2 BPE: published ids, identity on all byte strings, the naive merging rule, hostile files.
#include <algorithm>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>

#include "src/data/bpe.h"
#include "tests/data/support.h"
#include "tests/support/random.h"
#include "weft/core/parallel.h"
#include "weft/data/tokenizer.h"

namespace weft::data {
namespace {

using test::expect_error;
using test::TempFolder;
using Ids = std::vector<int32_t>;
using Merges = std::vector<std::pair<std::string, std::string>>;

// GPT-2's alphabet character of a byte, UTF-8.
std::string alphabet_char(int byte) {
  int code = byte, other = 0x100;
  for (int b = 0; b <= byte; ++b) {
    bool is_plain = (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
    if (b == byte) code = is_plain ? b : other;
    if (!is_plain) ++other;
  }
  if (code < 0x80) return std::string(1, static_cast<char>(code));
  return {static_cast<char>(0xc0 | code >> 6), static_cast<char>(0x80 | (code & 0x3f))};
}

// A small vocabulary: the bytes, then each merge's result, then <|endoftext|>.
struct SmallFiles {
  nlohmann::json vocab = nlohmann::json::object();
  std::string merges = "#version: 0.2\n";
  Merges pairs;

  explicit SmallFiles(Merges p = {{"a", "b"}, {"ab", "a"}, {"a", "a"}, {"aa", "b"}}) : pairs(std::move(p)) {
    for (int byte = 0; byte < 256; ++byte) vocab[alphabet_char(byte)] = byte;
    for (auto& [left, right] : pairs) {
      merges += left + " " + right + "\n";
      if (!vocab.contains(left + right)) vocab[left + right] = vocab.size();
    }
    vocab["<|endoftext|>"] = vocab.size();
  }
  std::unique_ptr<Tokenizer> make(const TempFolder& folder) const { return make(folder, vocab.dump(), merges); }
  static std::unique_ptr<Tokenizer> make(const TempFolder& folder, std::string_view vocab_text,
                                         std::string_view merges_text) {
    test::write_bytes(folder / "vocab.json", vocab_text);
    test::write_bytes(folder / "merges.txt", merges_text);
    return make_gpt2_tokenizer(folder / "vocab.json", folder / "merges.txt");
  }
};

// Step 4 of the specification, word for word: lowest pair, all its occurrences from left to right, again.
std::vector<std::string> naive_merge(std::string_view piece, const Merges& pairs) {
  std::vector<std::string> symbols;
  for (char c : piece) symbols.emplace_back(1, c);
  while (true) {
    size_t best = pairs.size();
    for (size_t i = 0; i + 1 < symbols.size(); ++i)
      for (size_t rank = 0; rank < best; ++rank)
        if (pairs[rank].first == symbols[i] && pairs[rank].second == symbols[i + 1]) best = rank;
    if (best == pairs.size()) return symbols;
    std::vector<std::string> merged;
    for (size_t i = 0; i < symbols.size(); ++i) {
      bool is_pair = i + 1 < symbols.size() && pairs[best].first == symbols[i] && pairs[best].second == symbols[i + 1];
      merged.push_back(is_pair ? symbols[i] + symbols[i + 1] : symbols[i]);
      if (is_pair) ++i;
    }
    symbols = merged;
  }
}

std::unique_ptr<Tokenizer> real_gpt2() {
  std::string folder = test::shared_data() + "/gpt2_tokenizer";
  return make_gpt2_tokenizer(folder + "/encoder.json", folder + "/vocab.bpe");
}

TEST(Gpt2, GivesThePublishedIds) {
  WEFT_NEED_SHARED("gpt2_tokenizer/encoder.json");
  auto gpt2 = real_gpt2();
  EXPECT_EQ(gpt2->vocab_size(), 50257);
  EXPECT_EQ(gpt2->end_of_text(), 50256);
  EXPECT_EQ(gpt2->byte_length(50256), 0);
  EXPECT_EQ(gpt2->byte_length(15496), 5);
  EXPECT_EQ(gpt2->encode("Hello world"), (Ids{15496, 995}));
  EXPECT_EQ(gpt2->encode("hello world"), (Ids{31373, 995}));
  EXPECT_EQ(gpt2->encode("Hello, I'm a language model,"), (Ids{15496, 11, 314, 1101, 257, 3303, 2746, 11}));
  EXPECT_EQ(gpt2->decode(Ids{15496, 995, 50256}), "Hello world<|endoftext|>");
  Ids special = gpt2->encode("<|endoftext|>");
  EXPECT_EQ(std::count(special.begin(), special.end(), 50256), 0);
}

TEST(Gpt2, GivesTheIdsOfTheVectorsFile) {
  WEFT_NEED_SHARED("gpt2_tokenizer/vectors.json");
  auto gpt2 = real_gpt2();
  auto vectors = nlohmann::json::parse(test::read_bytes(shared_file));
  ASSERT_EQ(vectors.size(), 7u);
  for (const auto& row : vectors) EXPECT_EQ(gpt2->encode(row["text"].get<std::string>()), row["ids"].get<Ids>()) << row;
}

TEST(Gpt2, EncodesWikitextAndDecodesItBack) {
  WEFT_NEED_SHARED("wikitext2/valid.txt");
  auto gpt2 = real_gpt2();
  std::string text = test::read_bytes(shared_file);
  Ids ids = gpt2->encode(text);
  EXPECT_EQ(gpt2->decode(ids), text);
  EXPECT_EQ(gpt2->encode(text), ids);  // from the cache
  // In parts, cut where the tokenizer says.
  Ids parts;
  for (std::string_view rest = text; !rest.empty();) {
    std::string_view part = rest.substr(0, 10000);
    size_t cut = part.size() == rest.size() ? rest.size() : gpt2->last_cut(part);
    ASSERT_GT(cut, 0u);
    Ids more = gpt2->encode(rest.substr(0, cut));
    parts.insert(parts.end(), more.begin(), more.end());
    rest.remove_prefix(cut);
  }
  EXPECT_EQ(parts, ids);
}

TEST(Gpt2, EncodesTheSameOnSeveralThreads) {
  WEFT_NEED_SHARED("tinyshakespeare.txt");
  auto gpt2 = real_gpt2();
  std::string text = test::read_bytes(shared_file).substr(0, 200000);
  Ids expected = gpt2->encode(text);
  std::vector<Ids> got(4);
  parallel_items(4, [&](int64_t i) { got[static_cast<size_t>(i)] = gpt2->encode(text); });
  for (const Ids& ids : got) EXPECT_EQ(ids, expected);
}

TEST(Gpt2, DecodesWhatItEncodedForAllByteStrings) {
  TempFolder folder;
  std::unique_ptr<Tokenizer> small = SmallFiles().make(folder), real;
  if (std::filesystem::exists(test::shared_data() + "/gpt2_tokenizer/encoder.json")) real = real_gpt2();
  Rng rng = Rng(test::seed())["bytes"];
  for (uint64_t i = 0; i < 4000; ++i) {
    std::string text;
    for (uint64_t j = 0; j < i % 60; ++j)
      text += i % 3 == 0 ? static_cast<char>(rng[i].below(256, j))
                         : "aab \n\t'st1\xc3\xa9\xe3\x80\x80"[rng[i].below(15, j)];
    ASSERT_EQ(small->decode(small->encode(text)), text);
    if (real) { ASSERT_EQ(real->decode(real->encode(text)), text); }
  }
}

TEST(Gpt2, MergesAsTheNaiveRuleDoes) {
  TempFolder folder;
  // Also ranks that no training gives: a merge that is only possible after a later one.
  std::vector<Merges> lists = {{{"a", "b"}, {"ab", "a"}, {"a", "a"}, {"aa", "b"}, {"aab", "ab"}, {"b", "b"}},
                               {{"aa", "a"}, {"ab", "c"}, {"c", "ab"}, {"a", "a"}, {"a", "b"}, {"b", "c"}, {"c", "a"}},
                               {{"b", "a"}, {"ba", "ba"}, {"baba", "baba"}, {"a", "ba"}, {"c", "c"}, {"cc", "c"}}};
  Rng rng = Rng(test::seed())["merge"];
  for (const auto& pairs : lists) {
    SmallFiles files(pairs);
    auto tokenizer = files.make(folder);
    for (uint64_t i = 0; i < 800; ++i) {
      std::string piece;
      for (uint64_t j = 0; j < 1 + i % 50; ++j) piece += "abc"[rng[i].below(3, j)];
      Ids expected;
      for (const std::string& symbol : naive_merge(piece, pairs))
        expected.push_back(files.vocab[symbol].get<int32_t>());
      ASSERT_EQ(tokenizer->encode(piece), expected) << piece;
    }
  }
}

TEST(Gpt2, EncodesOnePieceOfAMillionBytes) {
  TempFolder folder;
  auto tokenizer = SmallFiles().make(folder);
  std::string text(1 << 20, 'a');
  EXPECT_EQ(tokenizer->encode(text).size(), text.size() / 2);  // quadratic time would not end
}

TEST(Gpt2, AcceptsWindowsLineEndsAndNoVersionLine) {
  TempFolder folder;
  SmallFiles files(Merges{{"a", "b"}});
  EXPECT_EQ(SmallFiles::make(folder, files.vocab.dump(), "a b\r\n")->encode("ab"), (Ids{256}));
}

TEST(Gpt2, RefusesFilesThatDoNotFit) {
  TempFolder folder;
  SmallFiles good;
  auto vocab_error = [&](std::string_view text, std::initializer_list<std::string_view> parts) {
    expect_error([&] { SmallFiles::make(folder, text, good.merges); }, parts);
  };
  auto merges_error = [&](std::string_view text, std::initializer_list<std::string_view> parts) {
    expect_error([&] { SmallFiles::make(folder, good.vocab.dump(), text); }, parts);
  };
  auto changed = [&](auto change) {
    nlohmann::json vocab = good.vocab;
    change(vocab);
    return vocab.dump();
  };
  vocab_error("", {"vocab.json: byte", "JSON"});
  vocab_error("{\"a\": 1", {"vocab.json: byte 8", "JSON"});
  vocab_error("[1]", {"a list", "at the top"});
  vocab_error("7", {"a number"});
  vocab_error("{\"a\": {}}", {"an object", "\"a\""});
  vocab_error("{\"a\": -1}", {"-1", "\"a\""});
  vocab_error("{\"a\": 1.5}", {"1.5"});
  vocab_error("{\"a\": 99999999999}", {"99999999999"});
  vocab_error("{\"a\": 0, \"a\": 0}", {"\"a\" occurs twice"});
  vocab_error(std::string(100000, '['), {"a list"});
  vocab_error(changed([](auto& v) { v["ab"] = 100000; }), {"id 100000"});
  vocab_error(changed([](auto& v) { v["ab"] = 0; }), {"id 0 belongs to two tokens"});
  vocab_error(changed([](auto& v) {
                v.erase("<|endoftext|>");
                v["\u4e2d"] = 260;
              }),
              {"byte alphabet"});
  vocab_error(changed([](auto& v) {
                v.erase("z");
                v["zz"] = 'z';
              }),
              {"no token for byte 122"});
  vocab_error(changed([](auto& v) {
                v.erase("aab");
                v["xyz"] = 259;
              }),
              {"merges.txt:5", "aa b"});
  merges_error("", {"merges.txt: no merges"});
  merges_error("#version: 0.2\na b\nab\n", {"merges.txt:3", "\"ab\""});
  merges_error("a b\n\na a\n", {"merges.txt:2"});
  merges_error("a b c\n", {"merges.txt:1"});
  merges_error("a b\nz z\n", {"merges.txt:2", "z z"});
  merges_error("a b\na b\n", {"merges.txt:2", "already"});
  expect_error([&] { make_gpt2_tokenizer(folder / "absent", folder / "merges.txt"); }, {"absent", "No such file"});
}

TEST(Gpt2, NeverCrashesOnDamagedFiles) {
  TempFolder folder;
  SmallFiles good;
  Rng rng = Rng(test::seed())["damage"];
  for (uint64_t i = 0; i < 150; ++i) {
    std::string vocab = good.vocab.dump(), merges = good.merges;
    std::string& victim = i % 2 ? vocab : merges;
    if (i % 5 == 0) victim.resize(rng[i].below(victim.size(), 0));
    else
      for (uint64_t j = 0; j < 1 + i % 3; ++j)
        victim[rng[i].below(victim.size(), j)] = static_cast<char>(rng[i].below(256, 100 + j));
    try {
      auto tokenizer = SmallFiles::make(folder, vocab, merges);
      EXPECT_EQ(tokenizer->decode(tokenizer->encode("aabab c\xff")), "aabab c\xff");
    } catch (const Error& error) { EXPECT_FALSE(error.fix().empty()); }
  }
}

}  // namespace
}  // namespace weft::data
