// The bytes of a text file, uncompressed on the way if it is gzip, and refused if they are no text.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace weft::data {

class ByteStream {
 public:
  // Whether a file is gzip is seen in its first two bytes; a name that ends with .gz, .tgz or .dz promises it.
  explicit ByteStream(const std::string& path);
  ~ByteStream();
  ByteStream(const ByteStream&) = delete;
  ByteStream& operator=(const ByteStream&) = delete;

  // Fewer bytes only at the end. Error on a compressed file that is damaged, truncated or has something else than further
  // members behind a member, and on what is no text.
  size_t read(char* to, size_t num_bytes);
  int64_t bytes_consumed() const;  // of the file as it lies on the disk

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace weft::data
