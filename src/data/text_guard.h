// Tells text from what is no text: known formats by their first bytes, zero bytes, and a high share of invalid UTF-8.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace weft::data {

// Sees a file's (uncompressed) bytes once, from front to back. The first look() must hold the first kStartBytes of them, or
// the whole file. Every call may throw an Error that names the file, the place and what to do.
class TextGuard {
 public:
  static constexpr size_t kStartBytes = 512;

  explicit TextGuard(std::string path) : path_(std::move(path)) {}
  void look(std::string_view bytes);
  void end();  // no more bytes

 private:
  void check_start(std::string_view start) const;
  void check_window();

  std::string path_;
  uint64_t done_ = 0, window_begin_ = 0;
  size_t invalid_ = 0;                 // bytes of this window that are no part of UTF-8
  size_t partial_ = 0, expected_ = 0;  // of the character that is being read: bytes seen, bytes to come
};

}  // namespace weft::data
