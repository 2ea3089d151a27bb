// tokenizer.json and its training: how texts are cut, whole pieces, NFC, merges that are learned.
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "src/data/byte_alphabet.h"
#include "src/data/pretokenize.h"
#include "src/data/utf8.h"
#include "tests/data/bpe_support.h"
#include "tests/data/support.h"
#include "tests/support/random.h"
#include "weft/data/tokenize.h"
#include "weft/data/tokenizer.h"

namespace weft::data {
namespace {

using test::expect_error;
using test::file_of;
using test::make;
using test::pattern_of;
using test::TempFolder;
using Ids = std::vector<int32_t>;
using Json = nlohmann::json;
using Words = std::vector<std::string>;

Words pieces(std::string_view name, std::string_view text) {
  Words out;
  for (size_t at = 0; at < text.size();) {
    const size_t end = pattern_of(name).rule.piece_end(text, at);
    out.emplace_back(text.substr(at, end - at));
    at = end;
  }
  return out;
}

// By hand from the regular expressions.
TEST(Pieces, OfLlama3AndQwen2) {
  EXPECT_EQ(pieces("llama3", "I'Ll say 12345 x"), (Words{"I", "'Ll", " say", " ", "123", "45", " x"}));
  EXPECT_EQ(pieces("qwen2", "a 123"), (Words{"a", " ", "1", "2", "3"}));
  EXPECT_EQ(pieces("llama3", "'RE're'vex'dx'mm'tt'S"),
            (Words{"'RE", "'re", "'ve", "x", "'d", "x", "'m", "m", "'t", "t", "'S"}));
  EXPECT_EQ(pieces("llama3",
                   "'\xC5\xBF"
                   "it's"),
            (Words{"'\xC5\xBF", "it", "'s"}));  // the long s
  EXPECT_EQ(pieces("llama3", "'lx 'l"), (Words{"'lx", " '", "l"}));
  EXPECT_EQ(pieces("llama3", "(a)_b\tc"), (Words{"(a", ")_", "b", "\tc"}));
  EXPECT_EQ(pieces("llama3", "x...\r\n\n y"), (Words{"x", "...\r\n\n", " y"}));
  EXPECT_EQ(pieces("llama3", "x \n\n  \n  y"), (Words{"x", " \n\n  \n", " ", " y"}));
  EXPECT_EQ(pieces("llama3", "x   "), (Words{"x", "   "}));
  EXPECT_EQ(pieces("llama3", "x   1"), (Words{"x", "  ", " ", "1"}));
  EXPECT_EQ(pieces("llama3", "x  !!a"), (Words{"x", " ", " !!", "a"}));
  EXPECT_EQ(pieces("llama3", "\n\nab"), (Words{"\n\n", "ab"}));
  EXPECT_EQ(pieces("llama3",
                   "\xff\xfe"
                   "a"),
            (Words{"\xff\xfe", "a"}));
}

// Random texts of characters that matter to the patterns.
std::string random_text(const std::string& name, int64_t count) {
  static const Words kParts = {"a",
                               "Z",
                               "s",
                               "'",
                               "'ll",
                               "'VE",
                               " ",
                               "  ",
                               "\n",
                               "\r\n",
                               "\t",
                               "7",
                               "42",
                               "!",
                               "_.",
                               "(",
                               "\xC3\xA9",
                               "e\xCC\x81",
                               "\xE4\xB8\xAD",
                               "\xD9\xA3",
                               "\xC2\xA0",
                               "\xE3\x80\x80",
                               "\xF0\x9F\x98\x80",
                               "the",
                               "and",
                               "\xC5\xBF"};
  Rng rng = Rng(test::seed())[name];
  std::string text;
  for (int64_t i = 0; i < count; ++i) text += kParts[rng.bits(static_cast<uint64_t>(i))[0] % kParts.size()];
  return text;
}

TEST(Pieces, OfATextThatWasCutAreThoseOfTheWhole) {
  for (const char* name : {"gpt2", "llama3", "qwen2"})
    for (int round = 0; round < 40; ++round) {
      const std::string text = random_text(str(name, round), 60);
      const size_t cut = pattern_of(name).rule.last_cut(text);
      Words parts = pieces(name, std::string_view(text).substr(0, cut)),
            rest = pieces(name, std::string_view(text).substr(cut));
      parts.insert(parts.end(), rest.begin(), rest.end());
      EXPECT_EQ(parts, pieces(name, text)) << name << " cut at " << cut << " of: " << text;
    }
}

TEST(Bpe, ReadsATokenizerFile) {
  TempFolder folder;
  const auto tokenizer = make(folder, file_of({{"a", "b"}, {"ab", "c"}, {" ", "ab"}}));
  EXPECT_EQ(tokenizer->vocab_size(), 260);
  EXPECT_EQ(tokenizer->encode("abc ab"), (Ids{257, 258}));
  EXPECT_EQ(tokenizer->end_of_text(), 259);
  EXPECT_EQ(tokenizer->byte_length(259), 0);
  EXPECT_EQ(tokenizer->byte_length(257), 3);
  EXPECT_EQ(tokenizer->decode(Ids{258, 259}), " ab<|end_of_text|>");
  EXPECT_EQ(tokenizer->name(), "bpe");
  const Ids special = tokenizer->encode("<|end_of_text|>");
  EXPECT_EQ(std::count(special.begin(), special.end(), 259), 0);
  for (int round = 0; round < 20; ++round) {
    const std::string text = random_text(str("identity", round), 50) + '\xff';
    EXPECT_EQ(tokenizer->decode(tokenizer->encode(text)), text);
  }
  // Merges written as "a b" are the same.
  Json file = file_of({{"a", "b"}, {"ab", "c"}, {" ", "ab"}});
  for (Json& merge : file["model"]["merges"]) merge = merge[0].get<std::string>() + " " + merge[1].get<std::string>();
  EXPECT_EQ(make(folder, file)->encode("abc ab"), (Ids{257, 258}));
}

TEST(Bpe, TakesWholePiecesWhereTheFileSaysSo) {
  TempFolder folder;
  Json file = file_of({{"b", "c"}, {"a", "b"}});
  file["model"]["vocab"]["abc"] = 300;
  file["model"]["vocab"]["xyz"] = 301;
  const auto by_merges = make(folder, file);
  EXPECT_EQ(by_merges->encode("abc xyz"), (Ids{'a', 256, ' ', 'x', 'y', 'z'}));
  EXPECT_EQ(by_merges->byte_length(301), 0);
  file["model"]["ignore_merges"] = true;
  const auto whole = make(folder, file);
  EXPECT_EQ(whole->encode("abc xyz!xyz"), (Ids{300, ' ', 'x', 'y', 'z', '!', 'x', 'y', 'z'}));
  EXPECT_EQ(whole->encode("xyz"), (Ids{301}));
  EXPECT_EQ(whole->byte_length(301), 3);
  EXPECT_NE(whole->fingerprint(), by_merges->fingerprint());
}

TEST(Bpe, ComposesWhereTheFileAsksForNfc) {
  TempFolder folder;
  Json file = file_of({{"\xC3", "\xA9"}}, "qwen2");
  file["normalizer"] = {{"type", "NFC"}};
  const auto tokenizer = make(folder, file);
  EXPECT_EQ(tokenizer->encode("e\xCC\x81"), (Ids{256}));
  EXPECT_EQ(tokenizer->encode("\xC3\xA9"), (Ids{256}));
  EXPECT_EQ(tokenizer->decode(tokenizer->encode("\xff"
                                                "e\xCC\x81\xfe")),
            "\xff\xC3\xA9\xfe");
  EXPECT_EQ(composed("plain"), "plain");
  EXPECT_EQ(composed(""), "");
  file["normalizer"] = {{"type", "NFKC"}};
  expect_error([&] { make(folder, file); }, {"tokenizer.json", "NFKC"});
}

// The definition: count all pairs, merge the most frequent one, again.
std::vector<std::string> naive_merges(const std::string& text, size_t count) {
  const ByteAlphabet alphabet;
  std::map<std::string, int> order;  // of tokens
  std::vector<std::pair<char32_t, int>> bytes;
  for (int byte = 0; byte < 256; ++byte) bytes.push_back({alphabet.code_of(static_cast<unsigned char>(byte)), byte});
  std::sort(bytes.begin(), bytes.end());
  for (const auto& [code, byte] : bytes)
    order.emplace(std::string(1, static_cast<char>(byte)), static_cast<int>(order.size()));
  std::vector<Words> words;
  for (const std::string& piece : pieces("llama3", text)) {
    words.emplace_back();
    for (const char c : piece) words.back().emplace_back(1, c);
  }
  std::vector<std::string> merges;
  while (merges.size() < count) {
    std::map<std::pair<int, int>, std::pair<int64_t, std::pair<std::string, std::string>>> counts;
    for (const Words& word : words)
      for (size_t i = 0; i + 1 < word.size(); ++i) {
        auto& entry = counts[{order[word[i]], order[word[i + 1]]}];
        ++entry.first, entry.second = {word[i], word[i + 1]};
      }
    int64_t most = 0;
    std::pair<std::string, std::string> best;
    for (const auto& [pair, entry] : counts)
      if (entry.first > most) most = entry.first, best = entry.second;
    if (most == 0) break;
    const auto& [left, right] = best;
    order.emplace(left + right, static_cast<int>(order.size()));
    merges.push_back(alphabet.to_text(left) + " " + alphabet.to_text(right));
    for (Words& word : words) {
      Words merged;
      for (size_t i = 0; i < word.size(); ++i) {
        const bool is_pair = i + 1 < word.size() && word[i] == left && word[i + 1] == right;
        merged.push_back(is_pair ? left + right : word[i]);
        i += is_pair;
      }
      word = merged;
    }
  }
  return merges;
}

TEST(BpeTraining, LearnsTheMergesOfItsDefinition) {
  TempFolder folder;
  std::string text = "aaaa aaa aa banana bandana ananas\n";
  for (int i = 0; i < 30; ++i) text += random_text(str("train", i), 20) + (i % 3 ? " the theme, then" : "\n");
  test::write_bytes(folder / "text.txt", text);
  const BpeTrained done = train_bpe({folder / "text.txt"}, folder / "out.json", {.vocab = 357});
  EXPECT_EQ(done.vocab, 357);
  EXPECT_EQ(done.merges, 100);
  const Json file = Json::parse(test::read_bytes(folder / "out.json"));
  EXPECT_EQ(file["model"]["merges"].get<Words>(), naive_merges(text, 100));
  const auto tokenizer = make_bpe_tokenizer(folder / "out.json");
  EXPECT_EQ(tokenizer->vocab_size(), 357);
  EXPECT_EQ(tokenizer->end_of_text(), 356);
  EXPECT_EQ(tokenizer->decode(tokenizer->encode(text)), text);
  EXPECT_LT(tokenizer->encode(text).size(), text.size() * 2 / 3);
}

TEST(BpeTraining, StopsWhereNoPairIsLeft) {
  TempFolder folder;
  test::write_bytes(folder / "text.txt", "ab ab");
  for (const char* pattern : {"gpt2", "llama3", "qwen2"}) {
    const BpeTrained done = train_bpe({folder / "text.txt"}, folder / "out.json", {.vocab = 5000, .pattern = pattern});
    EXPECT_EQ(done.merges, 2) << pattern;
    EXPECT_EQ(make_bpe_tokenizer(folder / "out.json")->encode("ab ab").size(), 2u) << pattern;
  }
  expect_error([&] { train_bpe({folder / "text.txt"}, folder / "o.json", {.vocab = 256}); }, {"256 ids", "257"});
  expect_error([&] { train_bpe({folder / "text.txt"}, folder / "o.json", {.vocab = 300, .pattern = "cl100k"}); },
               {"cl100k", "llama3"});
  expect_error([&] { train_bpe({folder / "absent"}, folder / "o.json", {.vocab = 300}); }, {"absent"});
}

}  // namespace
}  // namespace weft::data
