// The byte alphabet of GPT-2: in token files printable Latin-1 bytes stand for themselves, the other 68 for U+0100 and up.
#pragma once

#include <array>
#include <string>
#include <string_view>

namespace weft::data {

class ByteAlphabet {
 public:
  ByteAlphabet();
  // False if a character is outside the alphabet.
  bool to_bytes(std::string_view text, std::string& bytes) const;
  std::string to_text(std::string_view bytes) const;
  char32_t code_of(unsigned char byte) const { return code_of_[byte]; }

 private:
  std::array<int, 0x144> byte_of_{};  // + 1; 0: no byte
  std::array<char32_t, 256> code_of_{};
};

}  // namespace weft::data
