// A gzip file is one or more members (RFC 1952), each with a checksum; zlib's inflate() reads one, and what stands behind it is
// looked at here. zlib's gzread() would take a file without the magic for text, and pass over junk behind a member.
#include "src/data/byte_stream.h"

#include <zlib.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "src/data/files.h"
#include "src/data/text_guard.h"
#include "weft/core/error.h"

namespace weft::data {

namespace {

constexpr size_t kInputBytes = size_t{1} << 18;
constexpr const char* kDamagedFix = "the file is damaged; fetch it again";

bool promises_gzip(std::string_view path) {
  return path.ends_with(".gz") || path.ends_with(".tgz") || path.ends_with(".dz");
}

}  // namespace

struct ByteStream::State {
  explicit State(const std::string& path) : file(path), guard(path), input(kInputBytes, '\0') {}
  ~State() {
    if (is_gzip) ::inflateEnd(&inflater);
  }

  InputFile file;
  TextGuard guard;
  std::string input;
  size_t begin = 0, end = 0;  // what of `input` is not used yet
  int64_t offset = 0;         // in the file, of input[begin]
  bool is_gzip = false, is_in_member = false;
  z_stream inflater{};
  std::string start;  // uncompressed bytes that the guard has seen and read() has not given out
  size_t start_begin = 0;
  bool is_at_end = false;

  const std::string& path() const { return file.path(); }
  size_t available() const { return end - begin; }

  // At least `count` (a few) bytes of input, or what there is.
  size_t fetch(size_t count) {
    if (available() >= count) return available();
    std::memmove(input.data(), input.data() + begin, available());
    end -= std::exchange(begin, 0);
    end += file.read(input.data() + end, input.size() - end);
    return available();
  }
  void use(size_t count) {
    begin += count;
    offset += static_cast<int64_t>(count);
  }
  bool is_at_magic() const { return available() >= 2 && input[begin] == '\x1f' && input[begin + 1] == '\x8b'; }

  void open();
  size_t read_plain(char* to, size_t num_bytes);
  size_t read_gzip(char* to, size_t num_bytes);
  size_t read_raw(char* to, size_t num_bytes) { return is_gzip ? read_gzip(to, num_bytes) : read_plain(to, num_bytes); }
  void inflate_some();
};

void ByteStream::State::open() {
  fetch(2);
  is_gzip = is_at_magic();
  WEFT_CHECK(is_gzip || !promises_gzip(path()), str(path(), " is not gzip, though its name says so"),
             "fetch it again, or rename it if it is plain text");
  if (is_gzip) WEFT_CHECK(::inflateInit2(&inflater, 16 + MAX_WBITS) == Z_OK, "zlib cannot start", "free some memory");
  start.resize(TextGuard::kStartBytes);
  start.resize(read_raw(start.data(), start.size()));
  guard.look(start);
}

size_t ByteStream::State::read_plain(char* to, size_t num_bytes) {
  size_t done = std::min(num_bytes, available());
  std::memcpy(to, input.data() + begin, done);
  use(done);
  size_t more = file.read(to + done, num_bytes - done);
  offset += static_cast<int64_t>(more);
  return done + more;
}

void ByteStream::State::inflate_some() {
  WEFT_CHECK(fetch(1) > 0, str("cannot read ", path(), ": the compressed file is truncated"), kDamagedFix);
  inflater.next_in = reinterpret_cast<unsigned char*>(input.data() + begin);
  inflater.avail_in = static_cast<unsigned>(available());
  int code = ::inflate(&inflater, Z_NO_FLUSH);
  use(available() - inflater.avail_in);
  WEFT_CHECK(code == Z_OK || code == Z_BUF_ERROR || code == Z_STREAM_END,
             str("cannot read ", path(), ": damaged gzip data before byte ", offset, ": ",
                 inflater.msg ? inflater.msg : "unknown fault"),
             kDamagedFix);
  is_in_member = code != Z_STREAM_END;
}

size_t ByteStream::State::read_gzip(char* to, size_t num_bytes) {
  size_t done = 0;
  while (done < num_bytes) {
    if (!is_in_member) {
      if (fetch(2) == 0) break;
      WEFT_CHECK(is_at_magic(),
                 str("cannot read ", path(), ": what stands behind the compressed data, from byte ", offset,
                     " on, is not gzip"),
                 "fetch the file again, or cut it off there");
      ::inflateReset(&inflater);
      is_in_member = true;
    }
    auto room = static_cast<unsigned>(std::min<size_t>(num_bytes - done, size_t{1} << 28));
    inflater.next_out = reinterpret_cast<unsigned char*>(to + done);
    inflater.avail_out = room;
    while (is_in_member && inflater.avail_out > 0) inflate_some();
    done += room - inflater.avail_out;
  }
  return done;
}

ByteStream::ByteStream(const std::string& path) : state_(std::make_unique<State>(path)) { state_->open(); }
ByteStream::~ByteStream() = default;

size_t ByteStream::read(char* to, size_t num_bytes) {
  State& s = *state_;
  size_t done = std::min(num_bytes, s.start.size() - s.start_begin);
  std::memcpy(to, s.start.data() + s.start_begin, done);
  s.start_begin += done;
  if (done == num_bytes) return done;
  size_t more = s.read_raw(to + done, num_bytes - done);
  if (more > 0) s.guard.look({to + done, more});
  if (done + more < num_bytes && !std::exchange(s.is_at_end, true)) s.guard.end();
  return done + more;
}

int64_t ByteStream::bytes_consumed() const { return state_->offset; }

}  // namespace weft::data
