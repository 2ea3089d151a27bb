// Reading event files, for inspection and tests. Framing and messages are taken as hostile.
#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "src/io/internal/wire.h"
#include "weft/core/error.h"
#include "weft/io/events.h"
#include "weft/io/files.h"

namespace weft::io {

using internal::WireReader;
using internal::WireType;

namespace {

constexpr size_t kStartBytes = 12, kTailBytes = 4;  // length and its checksum; checksum of the message

template <class T>
T read_number(std::string_view bytes, size_t at) {
  T value;
  std::memcpy(&value, bytes.data() + at, sizeof value);
  return value;
}

bool read_doubles(std::string_view packed, std::vector<double>& values) {
  if (packed.size() % sizeof(double) != 0) return false;
  for (size_t at = 0; at < packed.size(); at += sizeof(double)) values.push_back(read_number<double>(packed, at));
  return true;
}

bool parse_histogram(std::string_view message, Histogram& h) {
  WireReader in(message);
  bool is_good = true;
  while (in.next()) {
    if (in.type() == WireType::fixed64) {
      if (in.field() == 1) h.min = in.real64();
      else if (in.field() == 2) h.max = in.real64();
      else if (in.field() == 3) h.num = in.real64();
      else if (in.field() == 4) h.sum = in.real64();
      else if (in.field() == 5) h.sum_squares = in.real64();
    } else if (in.is(6, WireType::bytes)) {
      is_good &= read_doubles(in.bytes(), h.bucket_limits);
    } else if (in.is(7, WireType::bytes)) {
      is_good &= read_doubles(in.bytes(), h.buckets);
    }
  }
  return is_good && in.is_good();
}

bool parse_value(std::string_view message, EventValue& value) {
  WireReader in(message);
  bool is_good = true;
  while (in.next()) {
    if (in.is(1, WireType::bytes)) value.tag = in.bytes();
    else if (in.is(2, WireType::fixed32)) value.scalar = in.real32();
    else if (in.is(5, WireType::bytes)) is_good &= parse_histogram(in.bytes(), value.histogram.emplace());
    else if (in.is(8, WireType::bytes)) {
      WireReader tensor(in.bytes());
      while (tensor.next())
        if (tensor.is(8, WireType::bytes)) value.texts.emplace_back(tensor.bytes());
      is_good &= tensor.is_good();
    }
  }
  return is_good && in.is_good();
}

bool parse_event(std::string_view message, Event& event) {
  WireReader in(message);
  bool is_good = true;
  while (in.next()) {
    if (in.is(1, WireType::fixed64)) event.time.wall_s = in.real64();
    else if (in.is(2, WireType::varint)) event.time.step = static_cast<int64_t>(in.varint());
    else if (in.is(3, WireType::bytes)) event.file_version = in.bytes();
    else if (in.is(5, WireType::bytes)) {
      WireReader summary(in.bytes());
      while (summary.next())
        if (summary.is(1, WireType::bytes)) is_good &= parse_value(summary.bytes(), event.values.emplace_back());
      is_good &= summary.is_good();
    } else if (in.is(7, WireType::bytes)) {
      WireReader session(in.bytes());
      while (session.next()) event.starts_session |= session.is(1, WireType::varint) && session.varint() == 1;
      is_good &= session.is_good();
    }
  }
  return is_good && in.is_good();
}

}  // namespace

EventFile read_events(const std::string& path) {
  auto file = MappedFile::open(path);
  std::string_view bytes = file->bytes();
  auto refuse = [&](size_t at, std::string_view problem) {
    fail(str("events ", path, ": byte ", at, ": ", problem), "the file is damaged or no event file");
  };
  EventFile result;
  for (size_t at = 0; at < bytes.size();) {
    if (bytes.size() - at < kStartBytes) {
      result.has_torn_end = true;
      break;
    }
    auto length = read_number<uint64_t>(bytes, at);
    if (masked_crc32c(bytes.substr(at, 8)) != read_number<uint32_t>(bytes, at + 8))
      refuse(at, "the checksum of the record's length is wrong");
    size_t rest = bytes.size() - at - kStartBytes;
    if (rest < kTailBytes || length > rest - kTailBytes) {
      result.has_torn_end = true;
      break;
    }
    std::string_view message = bytes.substr(at + kStartBytes, length);
    if (masked_crc32c(message) != read_number<uint32_t>(bytes, at + kStartBytes + length))
      refuse(at, "the checksum of the record is wrong");
    if (!parse_event(message, result.events.emplace_back())) refuse(at, "the record is no Event message");
    result.events.back().offset = at;
    at += kStartBytes + length + kTailBytes;
    result.whole_bytes = at;
  }
  return result;
}

int64_t rewind_events(const std::string& folder, int64_t step, const std::function<bool(const EventValue&)>& keeps,
                      std::vector<std::string>& messages) {
  int64_t num_cut = 0;
  for (const std::string& name : list_folder(folder)) {
    if (!name.starts_with("events.out.tfevents.")) continue;
    const std::string path = folder + "/" + name;
    EventFile file;
    try {
      file = read_events(path);
    } catch (const Error& error) {
      messages.push_back(error.problem());
      continue;
    }
    auto first = std::find_if(file.events.begin(), file.events.end(), [&](const Event& event) {
      return event.time.step > step ||
             (event.time.step == step && !std::all_of(event.values.begin(), event.values.end(), keeps));
    });
    if (first == file.events.end() && !file.has_torn_end) continue;
    num_cut += file.events.end() - first + (file.has_torn_end ? 1 : 0);
    cut_file(path, first == file.events.end() ? file.whole_bytes : first->offset);
  }
  return num_cut;
}

}  // namespace weft::io
