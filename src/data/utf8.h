// Reading UTF-8 character by character, with the class of each character that pre-tokenisation asks for.
// Invalid UTF-8 (also overlong forms and surrogates): each offending byte is a character of class `other`.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace weft::data {

enum class CharClass : uint8_t { letter, number, space, other };

struct Char {
  char32_t code = 0;   // the byte itself if invalid
  uint8_t length = 1;  // bytes
  CharClass kind = CharClass::other;
  bool is_valid = true;
};

Char decode_char(std::string_view text, size_t at);  // any character, at < text.size()
void append_utf8(std::string& out, char32_t code);

namespace detail {
constexpr std::array<CharClass, 128> ascii_classes() {
  std::array<CharClass, 128> table{};
  for (size_t c = 0; c < 128; ++c) {
    bool is_letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    bool is_space = c == ' ' || (c >= 9 && c <= 13);
    table[c] = is_letter              ? CharClass::letter
               : c >= '0' && c <= '9' ? CharClass::number
               : is_space             ? CharClass::space
                                      : CharClass::other;
  }
  return table;
}
inline constexpr std::array<CharClass, 128> kAsciiClasses = ascii_classes();
}  // namespace detail

inline Char char_at(std::string_view text, size_t at) {
  auto byte = static_cast<unsigned char>(text[at]);
  if (byte < 128) return {byte, 1, detail::kAsciiClasses[byte], true};
  return decode_char(text, at);
}

// Canonical composition (NFC). Bytes that are no UTF-8 stay as they are.
std::string composed(std::string_view text);

// The character that ends at `end` (> 0).
Char char_before(std::string_view text, size_t end);

}  // namespace weft::data
