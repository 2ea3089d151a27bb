// Scalars of the config as text: parsing by the field's type, writing for messages and lists of differences.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace google::protobuf {
class FieldDescriptor;
class Message;
}  // namespace google::protobuf

namespace weft::config {

// A whole number of the command line, with the suffixes of integers below; nothing, or ConfigError "<origin>: ...", if it is none.
std::optional<int64_t> size_in_text(std::string_view text);
int64_t size_of_text(const std::string& text, const std::string& origin);

// Sets the scalar field (`index` < 0: the field itself, or one more element of a repeated field; else that element)
// from `text`. Integers take the suffixes k M G (powers of 1000) and KiB MiB GiB (powers of 1024) and exponents (1e6), where the
// result is whole; texts may be quoted.
// ConfigError "<origin>: <path> ..." with what the field takes when the text does not fit its type.
void set_scalar(google::protobuf::Message& message, const google::protobuf::FieldDescriptor& field, int index,
                std::string_view text, const std::string& origin, const std::string& path);

// What a field takes, for errors: "an integer in [1, inf) tokens", "one of f32, bf16".
std::string expectation(const google::protobuf::FieldDescriptor& field);

// The scalar as text: numbers in the shortest form that reads back equal, texts quoted, enums by name.
std::string scalar_text(const google::protobuf::Message& message, const google::protobuf::FieldDescriptor& field,
                        int index);

// The same; empty for a message or a list.
std::string scalar_or_empty(const google::protobuf::Message& message, const google::protobuf::FieldDescriptor& field);

// A float64 value of a numeric field, for checks of ranges.
double scalar_number(const google::protobuf::Message& message, const google::protobuf::FieldDescriptor& field,
                     int index);

}  // namespace weft::config
