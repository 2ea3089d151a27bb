// Paths of config fields: `field ( "." field | "[" index "]" | "[*]" )*`.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace google::protobuf {
class Descriptor;
class FieldDescriptor;
class Message;
}  // namespace google::protobuf

namespace weft::config {

inline constexpr int kNoIndex = -1, kAllElements = -2;

struct PathStep {
  std::string name;
  int index = kNoIndex;  // or kAllElements
};

// ConfigError "<origin>: ..." when the text is no path.
std::vector<PathStep> parse_path(std::string_view text, const std::string& origin);

// A field of one message: where a path ends.
struct Target {
  google::protobuf::Message* parent = nullptr;
  const google::protobuf::FieldDescriptor* field = nullptr;
  int index = kNoIndex;  // an element of a repeated field, or kNoIndex for the whole field
  std::string path;      // concrete: "model.mixer[0].softmax.heads"
};

// What a path is followed for: `write` makes the messages on the way (which clears other members of their oneofs),
// `clear` passes over what is not there.
enum class PathUse { write, clear };

// The fields that the path names: several with [*], otherwise one. [0] may be left out where a repeated field has
// exactly one element. Behind [*], elements that hold another member of a oneof than the path goes through are passed
// over.
std::vector<Target> resolve(google::protobuf::Message& message, const std::vector<PathStep>& steps, PathUse use,
                            const std::string& origin);

// The schema field of a path, indices ignored. ConfigError with a suggestion if there is none.
const google::protobuf::FieldDescriptor& find_field(const google::protobuf::Descriptor& message,
                                                    const std::vector<PathStep>& steps, const std::string& origin);

}  // namespace weft::config
