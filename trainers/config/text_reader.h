// Strict reader of protobuf text format. Errors name file:line:column or the argument, the path of the message, the
// offending word and the nearest valid one.
#pragma once

#include <string>
#include <string_view>

namespace google::protobuf {
class Message;
}

namespace weft::config {

class Origins;

// What a file should be, in the words of errors.
struct TextKind {
  const char *name, *short_name, *examples, *field;
};
inline constexpr TextKind kConfigText{"a config", "config", "trainers/recipes", "model { dim: 64 }"},
    kGridText{"the grid of a study", "grid", "trainers/recipes/studies", "seeds: 3"};
// All of a text of at most 1 MiB, from a file or a pipe. ConfigError if it is none: binary, JSON, a folder.
std::string read_text_file(const std::string& file, const TextKind& kind);

struct TextSource {
  std::string name;     // file or argument, for errors
  bool is_file = true;  // errors then carry line and column
  std::string path;     // path of the message within the config; empty for the whole
  std::string folder;   // what relative paths in the text are relative to
};

// Merges the text into `message`, resolves relative paths against `source.folder`, and notes in `origins`, if given, where
// each field stood. ConfigError on the first mistake.
void read_text(google::protobuf::Message& message, std::string_view text, const TextSource& source, Origins* origins);

// Of a text that Weft wrote beside a run and nobody edits. Returns what is wrong with it, such as "3:7: Expected identifier, got: }", or "".
// `passes_unknown`: over fields of a younger version. Nothing is printed, as protobuf's own functions would.
std::string parse_record(google::protobuf::Message& message, const std::string& text, bool passes_unknown = false);

// Makes every relative path of the message absolute; for values that came without a text around them.
std::string resolve_path(const std::string& path, const std::string& folder);

}  // namespace weft::config
