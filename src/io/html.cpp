#include "src/io/internal/html.h"

#include <cstdint>

namespace weft::io::internal {

namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

// Bytes of the UTF-8 character at the front, whose code point is stored; 0 if there is none (also overlong forms,
// surrogates).
size_t decode(std::string_view bytes, uint32_t& code) {
  auto byte = [&](size_t i) { return static_cast<uint8_t>(bytes[i]); };
  uint8_t first = byte(0);
  if (first < 0x80) return code = first, 1;
  size_t length = first >= 0xF0 && first <= 0xF4  ? 4
                  : first >= 0xE0 && first < 0xF0 ? 3
                  : first >= 0xC2 && first < 0xE0 ? 2
                                                  : 0;
  if (length == 0 || bytes.size() < length) return 0;
  code = first & (0xFFu >> (length + 1));
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return 0;
    code = code << 6 | (byte(i) & 0x3Fu);
  }
  constexpr uint32_t kSmallest[] = {0, 0, 0x80, 0x800, 0x10000};
  bool is_valid = code >= kSmallest[length] && code <= 0x10FFFF && !(code >= 0xD800 && code <= 0xDFFF);
  return is_valid ? length : 0;
}

bool is_allowed(uint32_t code) {
  if (code == '\t' || code == '\n') return true;
  return code >= 0x20 && !(code >= 0x7F && code < 0xA0) && (code & 0xFFFE) != 0xFFFE &&
         !(code >= 0xFDD0 && code <= 0xFDEF);
}

}  // namespace

std::string clean_utf8(std::string_view bytes) {
  std::string text;
  while (!bytes.empty()) {
    uint32_t code = 0;
    size_t length = decode(bytes, code);
    if (length > 0 && is_allowed(code)) text += bytes.substr(0, length);
    else if (!bytes.starts_with("\r\n")) text += kReplacement;
    bytes.remove_prefix(length > 0 ? length : 1);
  }
  return text;
}

std::string html_escape(std::string_view bytes) {
  std::string text;
  for (char c : clean_utf8(bytes)) {
    switch (c) {
      case '&': text += "&amp;"; break;
      case '<': text += "&lt;"; break;
      case '>': text += "&gt;"; break;
      case '"': text += "&quot;"; break;
      case '\'': text += "&#39;"; break;
      default: text += c;
    }
  }
  return text;
}

}  // namespace weft::io::internal
