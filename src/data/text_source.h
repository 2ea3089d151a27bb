// Input text cut into chunks that can be encoded on their own, and the documents in a chunk.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "src/data/byte_stream.h"
#include "weft/data/tokenize.h"

namespace weft::data {

// A part of one file that ends where no token and no JSONL line crosses.
struct Chunk {
  size_t file = 0;     // number of the input
  int64_t offset = 0;  // of its first byte in the uncompressed content
  int64_t line = 1;    // of its first byte; counted for JSONL only
  std::string text;
  bool is_last = false;  // of the file
};

// How documents lie in the files of one input.
enum class Layout : uint8_t { whole_file, blank_lines, jsonl };
Layout layout_of(const std::string& path, const TextOptions& options);

class ChunkReader {
 public:
  using Cut = std::function<size_t(std::string_view)>;  // Tokenizer::last_cut

  // Begins at `offset`, which must be where an earlier reader began a chunk. Chunks are the same again from there.
  ChunkReader(std::string path, size_t file, Layout layout, Cut cut, int64_t chunk_bytes, int64_t offset, int64_t line);
  bool next(Chunk& chunk);  // false at the end
  int64_t bytes_consumed() const { return stream_.bytes_consumed(); }

 private:
  bool fill(size_t size);  // false if the file ends before the buffer holds `size` bytes
  size_t find_cut(std::string_view text) const;

  std::string path_;
  size_t file_;
  Layout layout_;
  Cut cut_;
  size_t chunk_bytes_;
  ByteStream stream_;
  std::string buffer_;
  int64_t offset_, line_;
  bool is_done_ = false;
};

// Calls f(text, ends) for each piece of a document in the chunk; `ends` says that the document ends with it. Pieces
// without text come only as the end of a whole file. Errors, also those of f, name the file and the place.
void for_each_document(const Chunk& chunk, const std::string& path, Layout layout, const std::string& field,
                       const std::function<void(std::string_view text, bool ends)>& f);

}  // namespace weft::data
