#include "src/data/utf8.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>
#include <memory>

#include "weft/core/error.h"
#include "weft/data/tokenizer.h"

namespace weft::data {

namespace {

// Unicode White_Space above ASCII.
bool is_wide_space(char32_t code) {
  return code == 0x85 || code == 0xa0 || code == 0x1680 || (code >= 0x2000 && code <= 0x200a) || code == 0x2028 ||
         code == 0x2029 || code == 0x202f || code == 0x205f || code == 0x3000;
}

CharClass class_of(char32_t code) {
  if (code < 128) return detail::kAsciiClasses[code];
  if (is_wide_space(code)) return CharClass::space;
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(code))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO: return CharClass::letter;
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO: return CharClass::number;
    default: return CharClass::other;
  }
}

}  // namespace

Char decode_char(std::string_view text, size_t at) {
  utf8proc_int32_t code = -1;
  auto length = utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(text.data()) + at,
                                 static_cast<utf8proc_ssize_t>(std::min<size_t>(text.size() - at, 4)), &code);
  if (length <= 0 || code < 0) return {static_cast<unsigned char>(text[at]), 1, CharClass::other, false};
  auto point = static_cast<char32_t>(code);
  return {point, static_cast<uint8_t>(length), class_of(point), true};
}

Char char_before(std::string_view text, size_t end) {
  // A lead byte is never a continuation byte, so a valid character that ends here is what a forward scan meets too.
  for (size_t length = 1; length <= std::min<size_t>(end, 4); ++length) {
    if ((static_cast<unsigned char>(text[end - length]) & 0xc0) == 0x80) continue;
    Char c = char_at(text, end - length);
    if (c.is_valid && c.length == length) return c;
    break;
  }
  return {static_cast<unsigned char>(text[end - 1]), 1, CharClass::other, false};
}

std::string composed(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    size_t end = at;
    bool is_ascii = true;
    for (; end < text.size();) {
      const Char c = char_at(text, end);
      if (!c.is_valid) break;
      is_ascii = is_ascii && c.code < 128;
      end += c.length;
    }
    const std::string_view valid = text.substr(at, end - at);
    if (is_ascii) {
      out += valid;
    } else {
      utf8proc_uint8_t* made = nullptr;
      const auto length = utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(valid.data()),
                                       static_cast<utf8proc_ssize_t>(valid.size()), &made,
                                       static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
      const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owned(made, &std::free);
      if (length < 0) fail(str("NFC: ", utf8proc_errmsg(length)), "give UTF-8 text");
      out.append(reinterpret_cast<const char*>(made), static_cast<size_t>(length));
    }
    if (end < text.size()) out += text[end++];
    at = end;
  }
  return out;
}

void append_utf8(std::string& out, char32_t code) {
  utf8proc_uint8_t bytes[4];
  auto length = utf8proc_encode_char(static_cast<utf8proc_int32_t>(code), bytes);
  out.append(reinterpret_cast<const char*>(bytes), static_cast<size_t>(length));
}

// Characters that a terminal takes for commands, and those that turn the direction of what follows.
static bool commands_a_terminal(char32_t code) {
  bool is_control = (code < 0x20 && code != U'\n' && code != U'\t') || (code >= 0x7f && code < 0xa0);
  return is_control || (code >= 0x202a && code <= 0x202e) || (code >= 0x2066 && code <= 0x2069);
}

std::string show_utf8(std::string_view bytes) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string out;
  out.reserve(bytes.size());
  for (size_t at = 0; at < bytes.size();) {
    Char c = char_at(bytes, at);
    if (!c.is_valid) {
      out += "\xef\xbf\xbd";
    } else if (commands_a_terminal(c.code)) {
      out += c.code < 0x100 ? "\\x" : "\\u";
      for (int shift = c.code < 0x100 ? 4 : 12; shift >= 0; shift -= 4) out += kDigits[c.code >> shift & 15];
    } else {
      out.append(bytes.substr(at, c.length));
    }
    at += c.length;
  }
  return out;
}

}  // namespace weft::data
