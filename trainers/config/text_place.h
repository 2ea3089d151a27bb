// Finds the field path at a position of a text-format document: protobuf's own parser reports only message types.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace google::protobuf {
class Descriptor;
class FieldDescriptor;
}  // namespace google::protobuf

namespace weft::config {

// The place of a token. Lines and columns count from 0.
struct TextPlace {
  std::string path;                                          // of the message around it: "model.mixer[0].softmax"
  const google::protobuf::Descriptor* type = nullptr;        // its type; null below an unknown field
  const google::protobuf::FieldDescriptor* field = nullptr;  // the field whose value is being read, if any
  int line = 0, column = 0;
};

// The last token at or before (line, column) that reads `word` (quotes apart), or simply the last one if `word` is empty
// or does not occur. `path` is the path of the whole text.
TextPlace find_place(std::string_view text, const google::protobuf::Descriptor& type, const std::string& path, int line,
                     int column, const std::string& word);

// A '{' that is not closed before (line, column), and the message that it opened.
struct OpenBrace {
  std::string path;
  const google::protobuf::Descriptor* type = nullptr;
  int line = 0, column = 0;
};
// Outermost first.
std::vector<OpenBrace> open_braces(std::string_view text, const google::protobuf::Descriptor& type,
                                   const std::string& path, int line, int column);

std::string child_path(const std::string& path, std::string_view name);  // "a" + "b" -> "a.b"
std::string element_path(const std::string& path, int index);            // "a" + 2 -> "a[2]"

}  // namespace weft::config
