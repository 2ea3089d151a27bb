#include "src/data/pretokenize.h"

#include <array>

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

size_t gpt2_piece_end(std::string_view text, size_t begin) {
  if (text[begin] == '\'')
    if (size_t length = contraction(text.substr(begin, 3))) return begin + length;
  // One blank joins the letters, digits or other characters behind it.
  size_t body = begin + (text[begin] == ' ' ? 1 : 0);
  if (body < text.size()) {
    CharClass kind = char_at(text, body).kind;
    if (kind != CharClass::space) return run_end(text, body, kind);
  }
  // White space before a non-space gives up its last character, unless it has no other.
  size_t at = begin, last = begin;
  while (at < text.size()) {
    Char c = char_at(text, at);
    if (c.kind != CharClass::space) return last > begin ? last : at;
    last = at;
    at += c.length;
  }
  return at;
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

}  // namespace

const PieceRule kGpt2Pieces = {gpt2_piece_end, gpt2_last_cut};

}  // namespace weft::data
