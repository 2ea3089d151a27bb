#include "src/data/text_source.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <utility>

#include "weft/core/error.h"
#include "weft/data/tokenizer.h"

namespace weft::data {

namespace {

constexpr size_t kMaxChunkBytes = size_t{1} << 30;

bool is_blank(std::string_view line) { return line.find_first_not_of(" \t\r") == std::string_view::npos; }

std::string_view take_line(std::string_view& rest) {
  size_t end = std::min(rest.find('\n'), rest.size());
  std::string_view line = rest.substr(0, end);
  rest.remove_prefix(std::min(end + 1, rest.size()));
  return line;
}

}  // namespace

Layout layout_of(const std::string& path, const TextOptions& options) {
  std::filesystem::path name(path);
  if (name.extension() == ".gz" || name.extension() == ".dz") name = name.stem();
  bool is_jsonl =
      options.format == TextFormat::jsonl ||
      (options.format == TextFormat::automatic && (name.extension() == ".jsonl" || name.extension() == ".ndjson"));
  if (is_jsonl) return Layout::jsonl;
  return options.blank_lines ? Layout::blank_lines : Layout::whole_file;
}

ChunkReader::ChunkReader(std::string path, size_t file, Layout layout, Cut cut, int64_t chunk_bytes, int64_t offset,
                         int64_t line)
    : path_(std::move(path)),
      file_(file),
      layout_(layout),
      cut_(std::move(cut)),
      chunk_bytes_(static_cast<size_t>(chunk_bytes)),
      stream_(path_),
      offset_(0),
      line_(line) {
  std::string skipped(static_cast<size_t>(std::min<int64_t>(offset, 1 << 20)), '\0');
  while (offset_ < offset) {
    size_t part = std::min(skipped.size(), static_cast<size_t>(offset - offset_));
    WEFT_CHECK(stream_.read(skipped.data(), part) == part, str(path_, " ends before byte ", offset),
               "the file has changed; start again");
    offset_ += static_cast<int64_t>(part);
  }
}

bool ChunkReader::fill(size_t size) {
  size_t have = buffer_.size();
  if (have >= size) return true;
  buffer_.resize(size);
  buffer_.resize(have + stream_.read(buffer_.data() + have, size - have));
  return buffer_.size() == size;
}

// Behind the last blank line, 0 if there is none.
static size_t cut_at_blank_line(std::string_view text) {
  size_t end = text.rfind('\n');
  while (end != std::string_view::npos) {
    size_t before = end == 0 ? std::string_view::npos : text.rfind('\n', end - 1);
    size_t begin = before == std::string_view::npos ? 0 : before + 1;
    if (is_blank(text.substr(begin, end - begin))) return end + 1;
    end = before;
  }
  return 0;
}

size_t ChunkReader::find_cut(std::string_view text) const {
  switch (layout_) {
    case Layout::whole_file: return cut_(text);
    case Layout::blank_lines: return cut_at_blank_line(text);
    case Layout::jsonl: return text.rfind('\n') + 1;  // npos + 1 is 0
  }
  return 0;
}

// Where a chunk ends depends only on the bytes from its begin on, so that a resumed reader meets the same chunks.
bool ChunkReader::next(Chunk& chunk) {
  if (is_done_) return false;
  size_t cut = 0;
  for (size_t size = chunk_bytes_; cut == 0; size *= 2) {
    WEFT_CHECK(size <= kMaxChunkBytes, str(path_, ": no line or word ends in ", size / 2, " bytes from byte ", offset_),
               "check that this is text; break such long lines");
    is_done_ = !fill(size);
    if (is_done_) break;
    cut = find_cut(std::string_view(buffer_).substr(0, size));
  }
  if (is_done_) cut = buffer_.size();
  if (offset_ == 0 && cut == 0) return false;  // an empty file
  std::string rest = buffer_.substr(cut);
  buffer_.resize(cut);
  chunk = {.file = file_,
           .offset = offset_,
           .line = line_,
           .text = std::exchange(buffer_, std::move(rest)),
           .is_last = is_done_};
  offset_ += static_cast<int64_t>(cut);
  if (layout_ == Layout::jsonl) line_ += std::count(chunk.text.begin(), chunk.text.end(), '\n');
  return true;
}

constexpr const char* kNameIt =
    "name the field with the text: --field of weft data tokenize, data.train[0].field in a config, TextOptions::field "
    "in C++";

// "its texts are in "body", "title"", for an error; at most eight.
static std::string fields_text(const nlohmann::json& object) {
  std::string texts;
  int count = 0;
  for (const auto& [name, value] : object.items())
    if (value.is_string() && ++count <= 8)
      texts += str(texts.empty() ? "\"" : ", \"", show_utf8(name.substr(0, 40)), "\"");
  if (texts.empty()) return str("none of its ", object.size(), " fields is a text");
  return str("its fields with texts are ", texts, count > 8 ? ", ..." : "");
}

// The text of one JSONL line.
static std::string text_field(std::string_view line, const std::string& field) {
  constexpr const char* kFix = "each line must be a JSON object with the text in one field";
  nlohmann::json object;
  try {
    object = nlohmann::json::parse(line);
  } catch (const nlohmann::json::exception& error) { fail(str("not valid JSON: ", error.what()), kFix); }
  WEFT_CHECK(object.is_object(), str("a JSON ", object.type_name(), " instead of an object"), kFix);
  auto found = object.find(field);
  WEFT_CHECK(found != object.end(), str("no field \"", field, "\" that would hold the text; ", fields_text(object)),
             kNameIt);
  WEFT_CHECK(found->is_string(),
             str("the field \"", field, "\" is a ", found->type_name(), ", not a text; ", fields_text(object)),
             kNameIt);
  return found->get<std::string>();
}

void for_each_document(const Chunk& chunk, const std::string& path, Layout layout, const std::string& field,
                       const std::function<void(std::string_view text, bool ends)>& f) {
  std::string_view rest = chunk.text;
  int64_t line_number = chunk.line;
  try {
    switch (layout) {
      case Layout::whole_file: f(rest, chunk.is_last); break;
      case Layout::blank_lines:
        while (!rest.empty()) {
          const char* begin = rest.data();
          const char* end = begin;
          while (!rest.empty()) {
            std::string_view line = take_line(rest);
            if (is_blank(line)) break;
            end = line.data() + line.size();
          }
          if (end > begin) f({begin, static_cast<size_t>(end - begin)}, true);
        }
        break;
      case Layout::jsonl:
        for (; !rest.empty(); ++line_number) {
          std::string_view line = take_line(rest);
          if (is_blank(line)) continue;
          std::string text = text_field(line, field);
          if (!text.empty()) f(text, true);
        }
        break;
    }
  } catch (const Error& error) {
    fail(layout == Layout::jsonl ? str(path, ":", line_number, ": ", error.problem())
                                 : str(path, ", in the text from byte ", chunk.offset, " on: ", error.problem()),
         error.fix());
  }
}

}  // namespace weft::data
