#include "trainers/config/text_reader.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/io/tokenizer.h>
#include <google/protobuf/message.h>
#include <google/protobuf/text_format.h>

#include <cctype>
#include <filesystem>
#include <vector>

#include "trainers/config/config_error.h"
#include "trainers/config/origins.h"
#include "trainers/config/scalar.h"
#include "trainers/config/schema.h"
#include "trainers/config/text_place.h"

namespace weft::config {

namespace {

namespace pb = google::protobuf;
using InfoTree = pb::TextFormat::ParseInfoTree;

class FirstError : public pb::io::ErrorCollector {
 public:
  void AddError(int line, pb::io::ColumnNumber column, const std::string& text) override {
    if (!text_.empty()) return;
    line_ = line;
    column_ = column;
    text_ = text;
  }
  int line_ = 0, column_ = 0;
  std::string text_;
};

// The first "quoted" word of a message after `start`.
std::string quoted_word(const std::string& text, size_t start = 0) {
  size_t open = text.find('"', start);
  size_t close = open == std::string::npos ? open : text.find('"', open + 1);
  return close == std::string::npos ? "" : text.substr(open + 1, close - open - 1);
}

std::string position(const TextSource& source, int line, int column) {
  return source.is_file ? str(source.name, ":", line + 1, ":", column + 1) : source.name;
}

// " at tiny.txtpb:4:11", or nothing inside an argument.
std::string brace_position(const TextSource& source, const OpenBrace& brace) {
  return source.is_file ? " at " + position(source, brace.line, brace.column) : "";
}

// Whether nothing but blanks and comments follows (line, column).
bool is_blank_from(std::string_view text, int line, int column) {
  size_t begin = 0;
  for (int i = 0; i < line && begin != std::string_view::npos; ++i) begin = text.find('\n', begin) + 1;
  if (begin + static_cast<size_t>(column) > text.size()) return true;
  text.remove_prefix(begin + static_cast<size_t>(column));
  return text.find_first_not_of(" \t\r\n") == std::string_view::npos;
}

std::string message_name(const Descriptor& root, const std::string& path) {
  if (!path.empty()) return path;
  return root.name() == "Grid" ? "the grid" : "the config";
}

// What follows "got: " in the parser's own words, without the quotes.
std::string got_word(const std::string& text) {
  size_t got = text.find("got: ");
  if (got == std::string::npos) return "";
  std::string word = text.substr(got + 5);
  bool is_quoted = word.size() >= 2 && word.front() == '"' && word.back() == '"';
  return is_quoted ? word.substr(1, word.size() - 2) : word;
}

// "" unless `field`, which the message at the place does not have, is one of a message around it: then a '}' is missing.
std::string missing_brace_hint(const TextSource& source, std::string_view text, const Descriptor& root,
                               const TextPlace& place, const std::string& field) {
  std::vector<OpenBrace> open = open_braces(text, root, source.path, place.line, place.column);
  const Descriptor* around = &root;
  for (const OpenBrace& brace : open) {
    if (around && around->FindFieldByName(field))
      return str("A '}' seems to be missing before it: that of ", brace.path, brace_position(source, brace), ".");
    around = brace.type;
  }
  return "";
}

[[noreturn]] void fail_unknown_field(const TextSource& source, std::string_view text, const Descriptor& root,
                                     const FirstError& error) {
  std::string word = quoted_word(error.text_, error.text_.find("field named"));
  TextPlace place = find_place(text, root, source.path, error.line_, error.column_, word);
  std::vector<std::string> names = place.type ? field_names(*place.type) : std::vector<std::string>{};
  std::string hint = missing_brace_hint(source, text, root, place, word);
  const bool is_of_grid = place.path.empty() && (word == "base" || word == "axis");
  throw ConfigError(
      str(position(source, place.line, place.column), ": ", message_name(root, place.path), " has no field '", word,
          "'. ", hint.empty() ? suggestion(word, names, "Its fields") : hint),
      is_of_grid ? "This is the grid of a study: use weft ablate, or the config that its base names." : "");
}

// The text ends, or goes on wrongly, while braces are open.
[[noreturn]] void fail_open_brace(const TextSource& source, const Descriptor& root, const std::vector<OpenBrace>& open,
                                  const std::string& at) {
  const OpenBrace& inner = open.back();
  throw ConfigError(
      str(at, ": the text ends inside ", message_name(root, inner.path), ": its '{'", brace_position(source, inner),
          " is not closed", open.size() > 1 ? str(", and ", open.size() - 1, " around it") : "", "."),
      open.size() > 1 ? str("Add ", open.size(), " times '}'.") : "Add the missing '}'.");
}

// A number that the parser takes apart: "60K", "1e6". Empty if there is none at the place; `column` becomes that of its begin.
std::string number_word(std::string_view text, int line, int& column) {
  size_t begin = 0;
  for (int i = 0; i < line; ++i) {
    size_t end = text.find('\n', begin);
    if (end == std::string_view::npos) return "";
    begin = end + 1;
  }
  std::string_view row = text.substr(begin, std::min(text.find('\n', begin), text.size()) - begin);
  auto is_part = [](char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '.' || c == '_'; };
  auto first = std::min(static_cast<size_t>(column), row.size());
  while (first > 0 && is_part(row[first - 1])) --first;
  size_t last = first;
  while (last < row.size() && is_part(row[last])) ++last;
  std::string word(row.substr(first, last - first));
  if (word.empty() || !std::isdigit(static_cast<unsigned char>(word[0]))) return "";
  column = static_cast<int>(first);
  return word;
}

// Suffixes and exponents belong to the command line; a file has whole numbers. Of "60K" the parser takes the K for a field.
void refuse_size(const TextSource& source, std::string_view text, const Descriptor& root, const FirstError& error) {
  size_t field = error.text_.find("field named");
  std::string letters = field == std::string::npos ? "" : quoted_word(error.text_, field);
  TextPlace place = find_place(text, root, source.path, error.line_, error.column_, letters);
  const int line = letters.empty() ? error.line_ : place.line;
  int column = letters.empty() ? error.column_ : place.column;
  std::string word = number_word(text, line, column);
  if (word.find_first_not_of("0123456789._") == std::string::npos) return;
  place = find_place(text, root, source.path, line, column, "");
  if (!place.field || place.field->cpp_type() != FieldDescriptor::CPPTYPE_INT64) return;
  auto size = size_in_text(word);
  throw ConfigError(
      str(position(source, line, column), ": '", word, "' does not fit ", child_path(place.path, place.field->name()),
          "."),
      str(size ? str("Write ", *size) : str("Give ", expectation(*place.field)),
          ": texts take no suffixes and exponents, which path=value on the command line does (2M, 64KiB, 1e6)."));
}

[[noreturn]] void fail_enum(const TextSource& source, std::string_view text, const Descriptor& root,
                            const FirstError& error) {
  std::string word = quoted_word(error.text_);
  TextPlace place = find_place(text, root, source.path, error.line_, error.column_, word);
  std::vector<std::string> names = place.field ? value_names(*place.field->enum_type()) : std::vector<std::string>{};
  std::string near = nearest(word, names);
  throw ConfigError(str(position(source, place.line, place.column), ": ",
                        child_path(place.path, place.field ? place.field->name() : "value"), " has no value '", word,
                        "'.", near.empty() ? "" : " Did you mean '" + near + "'?"),
                    "Use one of " + join(names, ", ") + ".");
}

// Turns the parser's message into one with the path; the parser's words stay where they say it best.
[[noreturn]] void fail_text(const TextSource& source, std::string_view text, const Descriptor& root,
                            const FirstError& error) {
  refuse_size(source, text, root, error);
  if (error.text_.find("has no field named") != std::string::npos) fail_unknown_field(source, text, root, error);
  if (error.text_.find("Unknown enumeration value") != std::string::npos) fail_enum(source, text, root, error);
  std::string word = got_word(error.text_);
  TextPlace place = find_place(text, root, source.path, error.line_, error.column_, word);
  bool is_value = error.text_.find("Expected") != std::string::npos ||
                  error.text_.find("nteger out of range") != std::string::npos ||
                  error.text_.find("Invalid value") != std::string::npos;
  bool is_scalar = place.field && place.field->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE;
  std::string at = position(source, error.line_, error.column_);
  std::vector<OpenBrace> open = open_braces(text, root, source.path, error.line_, error.column_);
  bool is_at_end = word.empty() && is_blank_from(text, error.line_, error.column_);
  if (is_at_end && !open.empty()) fail_open_brace(source, root, open, at);
  if (open.empty() && word == "}")
    throw ConfigError(at + ": this '}' closes nothing.", "Remove it, or add the '{' it belongs to.");
  if (is_value && is_scalar && !place.field->is_repeated()) {
    std::string shown = word.empty() ? "this value" : "'" + word + "'";
    throw ConfigError(str(at, ": ", shown, " does not fit ", child_path(place.path, place.field->name()), "."),
                      "Give " + expectation(*place.field) + ".");
  }
  throw ConfigError(
      str(at, ": ", error.text_, " (in ", message_name(root, place.path), ")"),
      "See `weft config --explain " + (place.path.empty() ? "PATH" : place.path) + "` for what is allowed there.");
}

// Walks what was read: resolves paths, notes origins.
class Finisher {
 public:
  Finisher(const TextSource& source, Origins* origins) : source_(source), origins_(origins) {}

  void walk(pb::Message& message, const std::string& path, const InfoTree* tree) const {
    const pb::Reflection& reflection = *message.GetReflection();
    std::vector<const FieldDescriptor*> fields;
    reflection.ListFields(message, &fields);
    for (const FieldDescriptor* field : fields) {
      int count = field->is_repeated() ? reflection.FieldSize(message, field) : 1;
      for (int i = 0; i < count; ++i) {
        int index = field->is_repeated() ? i : -1;
        std::string at = child_path(path, field->name());
        if (index >= 0) at = element_path(at, index);
        if (tree) note(at, tree->GetLocation(field, index));
        if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
          pb::Message* child = index < 0 ? reflection.MutableMessage(&message, field)
                                         : reflection.MutableRepeatedMessage(&message, field, index);
          walk(*child, at, tree ? tree->GetTreeForNested(field, index) : nullptr);
        } else if (facts(*field).is_path) {
          reflection.SetString(&message, field, resolve_path(reflection.GetString(message, field), source_.folder));
        }
      }
    }
  }

 private:
  void note(const std::string& path, pb::TextFormat::ParseLocation location) const {
    if (origins_ && location.line >= 0) origins_->set(path, position(source_, location.line, location.column));
  }

  const TextSource& source_;
  Origins* origins_;
};

}  // namespace

std::string resolve_path(const std::string& path, const std::string& folder) {
  namespace fs = std::filesystem;
  if (path.empty() || path[0] == '/') return path;
  return fs::absolute(fs::path(folder) / path).lexically_normal().string();
}

void read_text(pb::Message& message, std::string_view text, const TextSource& source, Origins* origins) {
  FirstError error;
  InfoTree tree;
  pb::TextFormat::Parser parser;
  parser.RecordErrorsTo(&error);
  parser.WriteLocationsTo(&tree);
  parser.AllowPartialMessage(true);
  parser.SetRecursionLimit(32);
  bool is_read = parser.ParseFromString(std::string(text), &message);
  if (!is_read) fail_text(source, text, *message.GetDescriptor(), error);
  Finisher(source, origins).walk(message, source.path, &tree);
}

std::string parse_record(pb::Message& message, const std::string& text, bool passes_unknown) {
  FirstError error;
  pb::TextFormat::Parser parser;
  parser.RecordErrorsTo(&error);
  parser.AllowUnknownField(passes_unknown);
  if (parser.ParseFromString(text, &message)) return {};
  std::string fault = str(error.line_ + 1, ":", error.column_ + 1, ": ", error.text_);
  if (fault.ends_with('.')) fault.pop_back();
  return fault;
}

}  // namespace weft::config
