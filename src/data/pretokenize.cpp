#include "src/data/pretokenize.h"

#include <array>
#include <string>

#include "src/data/utf8.h"

namespace weft::data {

namespace {

size_t run_end(std::string_view text, size_t at, CharClass kind) {
  while (at < text.size()) {
    Char c = char_at(text, at);
    if (c.kind != kind) break;
    at += c.length;
  }
  return at;
}

// Length of the English contraction at the start of `text`, 0 if there is none.
size_t contraction(std::string_view text) {
  constexpr std::array<std::string_view, 7> kEndings = {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"};
  for (std::string_view ending : kEndings)
    if (text.starts_with(ending)) return ending.size();
  return 0;
}

// \s+(?!\S)|\s+: white space before a non-space gives up its last character, unless it has no other.
size_t blanks_end(std::string_view text, size_t begin) {
  size_t at = begin, last = begin;
  while (at < text.size()) {
    Char c = char_at(text, at);
    if (c.kind != CharClass::space) return last > begin ? last : at;
    last = at;
    at += c.length;
  }
  return at;
}

size_t gpt2_piece_end(std::string_view text, size_t begin) {
  if (text[begin] == '\'')
    if (size_t length = contraction(text.substr(begin, 3))) return begin + length;
  // One blank joins the letters, digits or other characters behind it.
  size_t body = begin + (text[begin] == ' ' ? 1 : 0);
  if (body < text.size()) {
    CharClass kind = char_at(text, body).kind;
    if (kind != CharClass::space) return run_end(text, body, kind);
  }
  return blanks_end(text, begin);
}

// Before white space that follows a non-space a piece ends for certain: no piece of the pattern goes from one to the
// other, and the look-ahead only matters behind white space. A blank or a newline is enough for real text.
size_t gpt2_last_cut(std::string_view text) {
  for (size_t at = text.size(); at-- > 1;) {
    if (text[at] != ' ' && text[at] != '\n') continue;
    if (char_before(text, at).kind != CharClass::space) return at;
  }
  return 0;
}

bool is_line_end(char c) { return c == '\r' || c == '\n'; }

// As contraction(), in either case. U+017F, the long s, is an s in either case too.
size_t contraction_any_case(std::string_view text) {
  std::string folded;
  size_t length = 0, first = 0;  // bytes of the text up to two letters, and up to the first
  for (int letters = 0; letters < 2 && 1 + length < text.size(); ++letters) {
    const Char c = char_at(text, 1 + length);
    if (c.code == 0x17f) folded += 's';
    else if (c.code < 128) folded += static_cast<char>(c.code >= 'A' && c.code <= 'Z' ? c.code + 32 : c.code);
    else break;
    length += c.length;
    if (letters == 0) first = length;
  }
  if (folded.empty()) return 0;
  if (std::string_view("stmd").find(folded[0]) != std::string_view::npos) return 1 + first;
  return folded == "re" || folded == "ve" || folded == "ll" ? 1 + length : 0;
}

template <int kDigits>
size_t llama_piece_end(std::string_view text, size_t begin) {
  if (text[begin] == '\'')
    if (size_t length = contraction_any_case(text.substr(begin, 5))) return begin + length;
  const Char first = char_at(text, begin);
  if (first.kind == CharClass::letter) return run_end(text, begin, CharClass::letter);
  const size_t second = begin + first.length;
  if (first.kind == CharClass::number) {
    size_t at = second;
    for (int digits = 1; digits < kDigits && at < text.size(); ++digits) {
      const Char c = char_at(text, at);
      if (c.kind != CharClass::number) break;
      at += c.length;
    }
    return at;
  }
  const bool has_second = second < text.size();
  if (!is_line_end(text[begin]) && has_second && char_at(text, second).kind == CharClass::letter)
    return run_end(text, second, CharClass::letter);
  const size_t body = text[begin] == ' ' ? second : begin;
  if (body < text.size() && char_at(text, body).kind == CharClass::other) {
    size_t at = run_end(text, body, CharClass::other);
    while (at < text.size() && is_line_end(text[at])) ++at;
    return at;
  }
  const size_t blanks = run_end(text, begin, CharClass::space);
  for (size_t at = blanks; at > begin; --at)
    if (is_line_end(text[at - 1])) return at;
  return blanks_end(text, begin);
}

// Before a blank behind a non-space, and before a line end behind a letter or digit. Other characters take line ends with them.
size_t llama_last_cut(std::string_view text) {
  for (size_t at = text.size(); at-- > 1;) {
    if (text[at] != ' ' && text[at] != '\n') continue;
    const CharClass before = char_before(text, at).kind;
    const bool is_word = before == CharClass::letter || before == CharClass::number;
    if (is_word || (text[at] == ' ' && before == CharClass::other)) return at;
  }
  return 0;
}

constexpr PiecePattern kPatterns[] = {
    {"gpt2", R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)", kGpt2Pieces, false},
    {"llama3",
     R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
     kLlama3Pieces, false},
    {"qwen2",
     R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
     kQwen2Pieces, true}};

}  // namespace

const PieceRule kGpt2Pieces = {gpt2_piece_end, gpt2_last_cut};
const PieceRule kLlama3Pieces = {llama_piece_end<3>, llama_last_cut};
const PieceRule kQwen2Pieces = {llama_piece_end<1>, llama_last_cut};

std::span<const PiecePattern> piece_patterns() { return kPatterns; }

}  // namespace weft::data
