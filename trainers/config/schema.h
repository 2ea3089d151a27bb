// What the schema says about fields: names, defaults, ranges, units, comments. Reads the options of schema.proto and the
// embedded comments of config.proto.
#pragma once

#include <string>
#include <vector>

namespace google::protobuf {
class Descriptor;
class EnumDescriptor;
class FieldDescriptor;
class OneofDescriptor;
}  // namespace google::protobuf

namespace weft::config {

using google::protobuf::Descriptor;
using google::protobuf::EnumDescriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::OneofDescriptor;

// An interval of numbers as written in the schema: "[0, 1)", "(0, inf)".
struct Range {
  double low = 0, high = 0;
  bool has_low = false, has_high = false;  // the end itself belongs to it
  std::string text;                        // empty: no range
  bool contains(double value) const;
};

struct Facts {
  std::string preset;  // default in text format; empty: none
  std::string unset;   // what "not set" means, in words
  std::string unit;
  Range range;
  bool is_required = false;
  bool is_path = false;
};

Facts facts(const FieldDescriptor& field);
const FieldDescriptor* default_choice(const OneofDescriptor& oneof);  // null: none is taken by itself

std::string type_name(const FieldDescriptor& field);  // "integer", "bool", "f32 | bf16", "message", "list of numbers"
std::string comment(const FieldDescriptor& field);    // the schema's comment on one line
std::string comment(const Descriptor& message);
std::vector<std::string> field_names(const Descriptor& message);
std::vector<std::string> value_names(const EnumDescriptor& type);  // without `unset`

}  // namespace weft::config
