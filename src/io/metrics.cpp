#include "weft/io/metrics.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <limits>
#include <nlohmann/json.hpp>

#include "src/io/internal/json_text.h"
#include "src/io/internal/posix.h"
#include "weft/core/error.h"
#include "weft/io/files.h"

namespace weft::io {

using internal::json_number;
using internal::json_string;
using Json = nlohmann::ordered_json;

namespace {

constexpr uint64_t kMaxMetricsBytes = uint64_t{1} << 32;

// nullopt: no number, and no text that stands for one.
std::optional<double> number_of(const Json& value) {
  if (value.is_number()) return value.get<double>();
  if (!value.is_string()) return std::nullopt;
  const auto& text = value.get_ref<const std::string&>();
  if (text == "nan") return std::numeric_limits<double>::quiet_NaN();
  if (text == "inf") return std::numeric_limits<double>::infinity();
  if (text == "-inf") return -std::numeric_limits<double>::infinity();
  return std::nullopt;
}

// Whole numbers; 0 if the value is none, or does not fit.
int64_t integer_of(const Json& value) {
  if (value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))
    return 0;
  return value.is_number_integer() ? value.get<int64_t>() : 0;
}

// nullopt: the line is no JSON object.
std::optional<MetricsRecord> parse_line(std::string_view line) {
  Json object = Json::parse(line, nullptr, false);
  if (!object.is_object()) return std::nullopt;
  MetricsRecord record;
  for (const auto& [key, value] : object.items()) {
    if (key == "step") record.step = integer_of(value);
    else if (key == "tokens") record.tokens = integer_of(value);
    else if (key == "time") record.time_s = number_of(value).value_or(0);
    else if (key == "wall") record.wall_s = number_of(value).value_or(0);
    else if (key == "kind") record.kind = value.is_string() ? value.get<std::string>() : "";
    else if (auto number = number_of(value)) record.values.emplace_back(key, *number);
  }
  return record;
}

// Removes the end of a file behind its last complete line; gives a complete line its missing line end.
void mend_last_line(const std::string& path) {
  if (!file_exists(path)) return;
  std::string bytes = read_file(path, kMaxMetricsBytes);
  if (bytes.empty() || bytes.back() == '\n') return;
  size_t begin = bytes.rfind('\n') == std::string::npos ? 0 : bytes.rfind('\n') + 1;
  if (parse_line(std::string_view(bytes).substr(begin))) bytes += '\n';
  else bytes.resize(begin);
  write_file_atomically(path, bytes);
}

// Where the lines of later steps than `step` begin, and how many lines there are from there on. Steps grow from line to line,
// and a "rewind" line after them only takes back what is cut too.
std::pair<size_t, int64_t> lines_beyond(std::string_view bytes, int64_t step) {
  struct Line {
    size_t begin;
    int64_t step;
  };
  std::vector<Line> counting;
  std::vector<size_t> begins;
  for (size_t begin = 0; begin < bytes.size();) {
    size_t end = std::min(bytes.find('\n', begin), bytes.size());
    begins.push_back(begin);
    if (auto record = parse_line(bytes.substr(begin, end - begin))) {
      if (record->kind == "rewind") std::erase_if(counting, [&](const Line& old) { return old.step > record->step; });
      else counting.push_back({begin, record->step});
    }
    begin = end + 1;
  }
  auto first = std::find_if(counting.begin(), counting.end(), [&](const Line& line) { return line.step > step; });
  size_t at = first == counting.end() ? bytes.size() : first->begin;
  return {at, begins.end() - std::lower_bound(begins.begin(), begins.end(), at)};
}

}  // namespace

std::optional<double> MetricsRecord::value(std::string_view key) const {
  auto at = std::find_if(values.begin(), values.end(), [&](const auto& pair) { return pair.first == key; });
  return at == values.end() ? std::nullopt : std::optional(at->second);
}

std::string to_json(const MetricsRecord& record) {
  std::string line =
      str("{\"step\":", record.step, ",\"tokens\":", record.tokens, ",\"time\":", json_number(record.time_s),
          ",\"wall\":", json_number(record.wall_s), ",\"kind\":", json_string(record.kind));
  for (const auto& [key, value] : record.values) line += str(",", json_string(key), ":", json_number(value));
  return line + "}";
}

MetricsWriter::MetricsWriter(const std::string& path) : path_(path) {
  mend_last_line(path);
  if (file_exists(path))
    for (const MetricsRecord& record : apply_rewinds(read_metrics(path)))
      last_step_ = std::max(last_step_, record.step);
  descriptor_ = internal::open_descriptor(path, O_WRONLY | O_CREAT | O_APPEND);
}

MetricsWriter::~MetricsWriter() { internal::close_quietly(descriptor_); }

void MetricsWriter::write(const MetricsRecord& record) {
  append(to_json(record));
  last_step_ = std::max(last_step_, record.step);
}

int64_t MetricsWriter::rewind(int64_t step, const std::string& aside) {
  if (last_step_ <= step) return 0;
  const std::string bytes = read_file(path_, kMaxMetricsBytes);
  const auto [begin, lines] = lines_beyond(bytes, step);
  if (!aside.empty()) append_file(aside, std::string_view(bytes).substr(begin));
  if (::ftruncate(descriptor_, static_cast<off_t>(begin)) != 0) internal::fail_errno("shorten", path_, errno);
  append(str("{\"kind\":\"rewind\",\"step\":", step, "}"));
  sync();
  last_step_ = step;
  return lines;
}

void MetricsWriter::sync() {
  if (::fsync(descriptor_) != 0) internal::fail_errno("sync", path_, errno);
}

void MetricsWriter::append(std::string line) {
  WEFT_CHECK(internal::is_still_at(descriptor_, path_),
             str("append to ", path_, ": the file was removed or replaced while it is written to"),
             "leave the files of a run alone while it is running; the same command continues from its last checkpoint");
  line += '\n';
  uint64_t written = 0;
  int code = internal::write_all(descriptor_, line, written);
  if (code == 0) return;
  // A torn line must not stand before the next one; if even this fails, the next writer mends it.
  off_t end = ::lseek(descriptor_, 0, SEEK_END);
  if (written > 0 && end >= static_cast<off_t>(written))
    (void)!::ftruncate(descriptor_, end - static_cast<off_t>(written));
  internal::fail_errno("append to", path_, code);
}

std::vector<MetricsRecord> read_metrics(const std::string& path) {
  std::string bytes = read_file(path, kMaxMetricsBytes);
  std::vector<MetricsRecord> records;
  int64_t line_number = 0;
  for (size_t begin = 0; begin < bytes.size();) {
    size_t end = bytes.find('\n', begin);
    bool is_last = end == std::string::npos;
    std::string_view line = std::string_view(bytes).substr(begin, is_last ? std::string_view::npos : end - begin);
    begin = is_last ? bytes.size() : end + 1;
    ++line_number;
    if (line.find_first_not_of(" \r\t") == std::string_view::npos) continue;
    auto record = parse_line(line);
    if (!record && is_last) break;
    WEFT_CHECK(record, str("metrics ", path, ":", line_number, ": the line is no JSON object: ", line.substr(0, 60)),
               "the file is damaged there; remove that line");
    records.push_back(std::move(*record));
  }
  return records;
}

std::vector<MetricsRecord> apply_rewinds(const std::vector<MetricsRecord>& records) {
  std::vector<MetricsRecord> kept;
  for (const MetricsRecord& record : records) {
    if (record.kind == "rewind") std::erase_if(kept, [&](const MetricsRecord& old) { return old.step > record.step; });
    else kept.push_back(record);
  }
  return kept;
}

}  // namespace weft::io
