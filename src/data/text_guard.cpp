#include "src/data/text_guard.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "weft/core/error.h"
#include "weft/data/tokenize.h"

namespace weft::data {

namespace {

constexpr uint64_t kWindowBytes = 1 << 16;
constexpr size_t kFewBytes = 16;  // that many invalid ones are always let through

constexpr std::string_view kUnpack = "unpack it, and give the UTF-8 text or JSONL inside";
constexpr std::string_view kExport = "export its text column as JSONL, one object with the field \"text\" per line";
constexpr std::string_view kConvert = "convert it to UTF-8, such as with iconv -t UTF-8";
constexpr std::string_view kNoText = "give UTF-8 text or JSONL";
constexpr std::string_view kShards = "give token shards under a name that ends with .bin";

struct Format {
  size_t at;
  std::string_view magic, name, fix;
};

using namespace std::string_view_literals;
constexpr Format kFormats[] = {
    {0, "PAR1"sv, "a Parquet file", kExport},
    {0, "ARROW1\0"sv, "an Arrow file", kExport},
    {0, "Obj\x01"sv, "an Avro file", kExport},
    {0, "SQLite format 3\0"sv, "an SQLite database", kExport},
    {0, "PK\x03\x04"sv, "a zip archive (also docx, npz, pt)", kUnpack},
    {0, "(\xb5/\xfd"sv, "compressed with zstd", "unpack it with zstd -d, or compress it with gzip"},
    {0,
     "\xfd"
     "7zXZ\0"sv,
     "compressed with xz", "unpack it with xz -d, or compress it with gzip"},
    {4, "1AY&SY"sv, "compressed with bzip2", "unpack it with bzip2 -d, or compress it with gzip"},
    {0, "\x04\"M\x18"sv, "compressed with lz4", "unpack it with lz4 -d, or compress it with gzip"},
    {0, "\x1f\x8b"sv, "gzip inside of gzip", "unpack it once"},
    {0, "\x1f\x9d"sv, "compressed with compress", "unpack it with uncompress, or compress it with gzip"},
    {0, "7z\xbc\xaf"sv, "a 7z archive", kUnpack},
    {0, "Rar!\x1a"sv, "a RAR archive", kUnpack},
    {257, "ustar"sv, "a tar archive", kUnpack},
    {0, "\x89PNG"sv, "a PNG picture", kNoText},
    {0, "\xff\xd8\xff"sv, "a JPEG picture", kNoText},
    {0, "GIF87a"sv, "a GIF picture", kNoText},
    {0, "GIF89a"sv, "a GIF picture", kNoText},
    {0, "%PDF-"sv, "a PDF document", "extract its text first, such as with pdftotext"},
    {8, "WAVEfmt"sv, "a WAV file", kNoText},
    {8, "WEBPVP8"sv, "a WebP picture", kNoText},
    {0, "OggS\0"sv, "an Ogg file", kNoText},
    {0,
     "\x7f"
     "ELF"sv,
     "a program", kNoText},
    {0, "\x93NUMPY"sv, "a NumPy array", kShards},
    {0, "\x89HDF\r\n"sv, "an HDF5 file", kExport},
    {0, "GGUF"sv, "a GGUF model", kNoText},
    {0, "\x88\xd8\x34\x01"sv, "a token shard", kShards},
    {0, "\xa1\xd9\x34\x01"sv, "a token shard", kShards},
    {0, "MMIDIDX\0"sv, "the index of token shards", kShards},
    {0, "\xff\xfe"sv, "UTF-16 or UTF-32 text", kConvert},
    {0, "\xfe\xff"sv, "UTF-16 text", kConvert},
    {0, "version https://git-lfs.github.com/spec/"sv, "a pointer of Git LFS and not the file itself",
     "fetch the content with git lfs pull"},
};

// Bytes of the character that a lead byte opens; 1 for ASCII, 0 for a byte that opens none.
size_t length_of(unsigned char lead) {
  return lead < 0x80 ? 1 : lead < 0xc2 ? 0 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : lead < 0xf5 ? 4 : 0;
}

// Eight bytes of ASCII without a zero among them.
bool is_plain(const char* at) {
  uint64_t word;
  std::memcpy(&word, at, sizeof word);
  constexpr uint64_t kHigh = 0x8080808080808080, kOnes = 0x0101010101010101;
  return (word & kHigh) == 0 && ((word - kOnes) & ~word & kHigh) == 0;
}

}  // namespace

void TextGuard::check_start(std::string_view start) const {
  for (const Format& format : kFormats)
    WEFT_CHECK(start.size() < format.at || !start.substr(format.at).starts_with(format.magic),
               str(path_, " is no text: it is ", format.name), std::string(format.fix));
}

void TextGuard::check_window() {
  uint64_t size = done_ - window_begin_;
  WEFT_CHECK(invalid_ < kFewBytes || invalid_ * 4 <= size,
             str(path_, " is no UTF-8 text: ", invalid_, " of the ", size, " bytes from byte ", window_begin_,
                 " on are no part of a character"),
             "convert it to UTF-8, such as with iconv -f LATIN1 -t UTF-8; binary data is no text");
  window_begin_ = done_;
  invalid_ = 0;
}

void TextGuard::look(std::string_view bytes) {
  if (done_ == 0) check_start(bytes);
  for (size_t i = 0; i < bytes.size();) {
    // The rest of this window.
    const size_t stop = std::min<size_t>(bytes.size(), i + (window_begin_ + kWindowBytes - done_));
    const size_t begin = i;
    while (i < stop) {
      if (expected_ == 0 && i + 8 <= stop && is_plain(bytes.data() + i)) {
        i += 8;
        continue;
      }
      auto byte = static_cast<unsigned char>(bytes[i]);
      WEFT_CHECK(byte != 0, str(path_, " is no text: byte ", done_ + (i - begin), " is zero"),
                 "give UTF-8 text or JSONL; UTF-16 text must be converted (iconv -f UTF-16 -t UTF-8), and data that is "
                 "no text can be given as token shards");
      if (expected_ > 0 && (byte & 0xc0) == 0x80) {
        partial_ = --expected_ == 0 ? 0 : partial_ + 1;
        ++i;
        continue;
      }
      invalid_ += std::exchange(partial_, 0);  // a character that breaks off; the byte is looked at anew
      expected_ = 0;
      size_t length = length_of(byte);
      if (length == 0) ++invalid_;
      if (length > 1) partial_ = 1, expected_ = length - 1;
      ++i;
    }
    done_ += i - begin;
    if (done_ - window_begin_ == kWindowBytes) check_window();
  }
}

void TextGuard::end() {
  invalid_ += std::exchange(partial_, 0);
  expected_ = 0;
  check_window();
}

void require_text(std::string_view bytes, const std::string& path) {
  TextGuard guard(path);
  guard.look(bytes);
  guard.end();
}

}  // namespace weft::data
