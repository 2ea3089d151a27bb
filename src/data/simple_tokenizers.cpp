// Tokenizers without merges: one id per byte, and one id per character of a fixed alphabet.
#include <algorithm>
#include <bitset>
#include <charconv>
#include <cstdio>
#include <unordered_map>
#include <utility>

#include "src/data/files.h"
#include "src/data/utf8.h"
#include "weft/core/error.h"
#include "weft/data/tokenizer.h"

namespace weft::data {

namespace {

constexpr std::string_view kAlphabetHeader = "weft characters 1";
constexpr size_t kCodePoints = 0x110000;

void check_id(int32_t id, int64_t vocab, std::string_view name) {
  WEFT_CHECK(id >= 0 && id < vocab, str("tokenizer ", name, ": id ", id, " is outside its ", vocab, " ids"),
             "decode with the tokenizer that made the ids");
}

class ByteTokenizer final : public Tokenizer {
 public:
  std::vector<int32_t> encode(std::string_view text) const override {
    std::vector<int32_t> ids(text.size());
    for (size_t i = 0; i < text.size(); ++i) ids[i] = static_cast<unsigned char>(text[i]);
    return ids;
  }
  std::string decode(std::span<const int32_t> ids) const override {
    std::string text;
    text.reserve(ids.size());
    for (int32_t id : ids) {
      check_id(id, 256, name());
      text += static_cast<char>(id);
    }
    return text;
  }
  int64_t vocab_size() const override { return 256; }
  int64_t byte_length(int32_t id) const override {
    check_id(id, 256, name());
    return 1;
  }
  std::string name() const override { return "bytes"; }
  uint64_t fingerprint() const override { return Fingerprint().add(name()).value(); }
  size_t last_cut(std::string_view text) const override { return text.size(); }
};

class IdTokenizer final : public Tokenizer {
 public:
  explicit IdTokenizer(int64_t vocab) : vocab_(vocab) {}

  std::vector<int32_t> encode(std::string_view text) const override {
    std::vector<int32_t> ids;
    for (size_t at = 0; at < text.size(); ++at) {
      if (text[at] == ' ') continue;
      int32_t id = -1;
      const auto [end, code] = std::from_chars(text.data() + at, text.data() + text.size(), id);
      WEFT_CHECK(code == std::errc() && id >= 0 && id < vocab_ && (end == text.data() + text.size() || *end == ' '),
                 str("tokenizer ids: no id below ", vocab_, " at offset ", at),
                 "write numbers separated by spaces, such as \"12 7 0\"");
      ids.push_back(id);
      at = static_cast<size_t>(end - text.data());
    }
    return ids;
  }
  std::string decode(std::span<const int32_t> ids) const override {
    std::string text;
    for (int32_t id : ids) {
      check_id(id, vocab_, name());
      text += str(text.empty() ? "" : " ", id);
    }
    return text;
  }
  int64_t vocab_size() const override { return vocab_; }
  int64_t byte_length(int32_t id) const override {
    check_id(id, vocab_, name());
    return 0;
  }
  std::string name() const override { return "ids"; }
  uint64_t fingerprint() const override { return Fingerprint().add(name()).add(str(vocab_)).value(); }
  size_t last_cut(std::string_view text) const override { return text.rfind(' ') + 1; }

 private:
  int64_t vocab_;
};

std::string code_name(char32_t code) {
  char text[16];
  std::snprintf(text, sizeof text, "U+%04X", static_cast<unsigned>(code));
  return text;
}

bool is_character(char32_t code) { return code < kCodePoints && !(code >= 0xd800 && code < 0xe000); }

class CharacterTokenizer final : public Tokenizer {
 public:
  explicit CharacterTokenizer(Alphabet alphabet) : alphabet_(std::move(alphabet)), ascii_(128, -1) {
    WEFT_CHECK(!alphabet_.empty(), "tokenizer characters: the alphabet is empty", "make it from the training text");
    for (size_t i = 0; i < alphabet_.size(); ++i) {
      char32_t code = alphabet_[i];
      WEFT_CHECK(is_character(code), str("tokenizer characters: ", code_name(code), " is not a character"),
                 "use code points up to U+10FFFF without surrogates");
      WEFT_CHECK(i == 0 || alphabet_[i - 1] < code,
                 str("tokenizer characters: ", code_name(code), " follows ", code_name(alphabet_[i - 1])),
                 "sort the alphabet and remove repeated characters");
      if (code < 128) ascii_[code] = static_cast<int32_t>(i);
      else others_[code] = static_cast<int32_t>(i);
    }
  }

  std::vector<int32_t> encode(std::string_view text) const override {
    std::vector<int32_t> ids;
    ids.reserve(text.size());
    for (size_t at = 0; at < text.size();) {
      Char c = char_at(text, at);
      int32_t id = c.is_valid ? find(c.code) : -1;
      if (id < 0) [[unlikely]]
        fail_at(c, at);
      ids.push_back(id);
      at += c.length;
    }
    return ids;
  }

  std::string decode(std::span<const int32_t> ids) const override {
    std::string text;
    for (int32_t id : ids) {
      check_id(id, vocab_size(), name());
      append_utf8(text, alphabet_[static_cast<size_t>(id)]);
    }
    return text;
  }

  int64_t vocab_size() const override { return static_cast<int64_t>(alphabet_.size()); }
  int64_t byte_length(int32_t id) const override {
    check_id(id, vocab_size(), name());
    char32_t code = alphabet_[static_cast<size_t>(id)];
    return code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
  }
  std::string name() const override { return "characters"; }
  uint64_t fingerprint() const override {
    Fingerprint print;
    print.add(name());
    for (char32_t code : alphabet_) print.add(uint64_t{code});
    return print.value();
  }
  size_t last_cut(std::string_view text) const override {
    // Up to three bytes of an unfinished character stay behind.
    for (size_t end = text.size(); end > 0 && end + 4 > text.size(); --end)
      if (char_before(text, end).is_valid) return end;
    return text.size() < 4 ? 0 : text.size();  // not UTF-8 wherever it is cut: encode() says so
  }

 private:
  int32_t find(char32_t code) const {
    if (code < 128) return ascii_[code];
    auto found = others_.find(code);
    return found == others_.end() ? -1 : found->second;
  }
  [[noreturn]] void fail_at(const Char& c, size_t at) const {
    fail(c.is_valid ? str("tokenizer characters: ", code_name(c.code), " at byte ", at, " is not in the alphabet of ",
                          vocab_size(), " characters")
                    : str("tokenizer characters: byte ", at, " is not valid UTF-8"),
         c.is_valid ? "make the alphabet from all the text, or use the tokenizer bytes"
                    : "use UTF-8 text or the tokenizer bytes");
  }

  Alphabet alphabet_;
  std::vector<int32_t> ascii_;
  std::unordered_map<char32_t, int32_t> others_;
};

}  // namespace

std::unique_ptr<Tokenizer> make_id_tokenizer(int64_t vocab) { return std::make_unique<IdTokenizer>(vocab); }
std::unique_ptr<Tokenizer> make_byte_tokenizer() { return std::make_unique<ByteTokenizer>(); }

std::unique_ptr<Tokenizer> make_character_tokenizer(Alphabet alphabet) {
  return std::make_unique<CharacterTokenizer>(std::move(alphabet));
}

Alphabet make_alphabet(std::string_view text) {
  auto seen = std::make_unique<std::bitset<kCodePoints>>();
  for (size_t at = 0; at < text.size();) {
    Char c = char_at(text, at);
    WEFT_CHECK(c.is_valid, str("make_alphabet: byte ", at, " is not valid UTF-8"),
               "use UTF-8 text or the tokenizer bytes");
    seen->set(c.code);
    at += c.length;
  }
  Alphabet alphabet;
  for (size_t code = 0; code < kCodePoints; ++code)
    if (seen->test(code)) alphabet.push_back(static_cast<char32_t>(code));
  return alphabet;
}

void save_alphabet(const std::string& path, const Alphabet& alphabet) {
  std::string content = str(kAlphabetHeader, "\n");
  for (char32_t code : alphabet) content += code_name(code) + "\n";
  write_file(path, content);
}

Alphabet load_alphabet(const std::string& path) {
  std::string content = read_file(path, kCodePoints * 10 + 64);
  std::string_view rest = content;
  Alphabet alphabet;
  for (int64_t line = 1; !rest.empty(); ++line) {
    size_t end = std::min(rest.find('\n'), rest.size());
    std::string_view text = rest.substr(0, end);
    rest.remove_prefix(std::min(end + 1, rest.size()));
    if (line == 1) {
      WEFT_CHECK(text == kAlphabetHeader, str(path, ":1: the first line is not \"", kAlphabetHeader, "\""),
                 "give a file that save_alphabet() wrote");
      continue;
    }
    uint32_t code = 0;
    bool is_code = text.starts_with("U+") && text.size() <= 8;
    if (is_code) {
      auto [stop, status] = std::from_chars(text.data() + 2, text.data() + text.size(), code, 16);
      is_code = status == std::errc() && stop == text.data() + text.size();
    }
    WEFT_CHECK(is_code && is_character(code), str(path, ":", line, ": not a code point such as U+0041"),
               "give a file that save_alphabet() wrote");
    WEFT_CHECK(alphabet.empty() || alphabet.back() < code, str(path, ":", line, ": the code points do not ascend"),
               "give a file that save_alphabet() wrote");
    alphabet.push_back(code);
  }
  WEFT_CHECK(!alphabet.empty(), str(path, ": no characters"), "give a file that save_alphabet() wrote");
  return alphabet;
}

}  // namespace weft::data
