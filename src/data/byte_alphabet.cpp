#include "src/data/byte_alphabet.h"

#include "src/data/utf8.h"

namespace weft::data {

ByteAlphabet::ByteAlphabet() {
  char32_t other = 0x100;
  for (char32_t byte = 0; byte < 256; ++byte) {
    bool is_plain = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
    code_of_[byte] = is_plain ? byte : other++;
    byte_of_[code_of_[byte]] = static_cast<int>(byte) + 1;
  }
}

bool ByteAlphabet::to_bytes(std::string_view text, std::string& bytes) const {
  bytes.clear();
  for (size_t at = 0; at < text.size();) {
    Char c = char_at(text, at);
    if (!c.is_valid || c.code >= byte_of_.size() || byte_of_[c.code] == 0) return false;
    bytes += static_cast<char>(byte_of_[c.code] - 1);
    at += c.length;
  }
  return true;
}

std::string ByteAlphabet::to_text(std::string_view bytes) const {
  std::string text;
  for (const char byte : bytes) append_utf8(text, code_of_[static_cast<unsigned char>(byte)]);
  return text;
}

}  // namespace weft::data
