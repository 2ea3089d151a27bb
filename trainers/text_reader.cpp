#include "trainers/text_reader.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/io/tokenizer.h>
#include <google/protobuf/message.h>
#include <google/protobuf/text_format.h>

#include <filesystem>
#include <vector>

#include "trainers/config_error.h"
#include "trainers/origins.h"
#include "trainers/scalar.h"
#include "trainers/schema.h"
#include "trainers/text_place.h"

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

std::string message_name(const std::string& path) { return path.empty() ? "the config" : path; }

// What follows "got: " in the parser's own words, without the quotes.
std::string got_word(const std::string& text) {
  size_t got = text.find("got: ");
  if (got == std::string::npos) return "";
  std::string word = text.substr(got + 5);
  bool is_quoted = word.size() >= 2 && word.front() == '"' && word.back() == '"';
  return is_quoted ? word.substr(1, word.size() - 2) : word;
}

[[noreturn]] void fail_unknown_field(const TextSource& source, std::string_view text, const Descriptor& root,
                                     const FirstError& error) {
  std::string word = quoted_word(error.text_, error.text_.find("field named"));
  TextPlace place = find_place(text, root, source.path, error.line_, error.column_, word);
  std::vector<std::string> names = place.type ? field_names(*place.type) : std::vector<std::string>{};
  throw ConfigError(str(position(source, place.line, place.column), ": ", message_name(place.path), " has no field '",
                        word, "'. ", suggestion(word, names, "Its fields")),
                    "");
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
  if (error.text_.find("has no field named") != std::string::npos) fail_unknown_field(source, text, root, error);
  if (error.text_.find("Unknown enumeration value") != std::string::npos) fail_enum(source, text, root, error);
  std::string word = got_word(error.text_);
  TextPlace place = find_place(text, root, source.path, error.line_, error.column_, word);
  bool is_value = error.text_.find("Expected") != std::string::npos ||
                  error.text_.find("nteger out of range") != std::string::npos ||
                  error.text_.find("Invalid value") != std::string::npos;
  bool is_scalar = place.field && place.field->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE;
  std::string at = position(source, error.line_, error.column_);
  if (is_value && is_scalar && !place.field->is_repeated()) {
    std::string shown = word.empty() ? "this value" : "'" + word + "'";
    throw ConfigError(str(at, ": ", shown, " does not fit ", child_path(place.path, place.field->name()), "."),
                      "Give " + expectation(*place.field) + ".");
  }
  throw ConfigError(
      str(at, ": ", error.text_, " (in ", message_name(place.path), ")"),
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

}  // namespace weft::config
