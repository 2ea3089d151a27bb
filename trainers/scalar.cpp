#include "trainers/scalar.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>
#include <google/protobuf/text_format.h>

#include <charconv>
#include <cmath>
#include <optional>

#include "trainers/config_error.h"
#include "trainers/schema.h"

namespace weft::config {

namespace {

namespace pb = google::protobuf;

template <class T>
std::optional<T> parse_number(std::string_view text) {
  T value{};
  if (text.starts_with('+')) text.remove_prefix(1);
  auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (code != std::errc() || end != text.data() + text.size() || text.empty()) return std::nullopt;
  return value;
}

// "4096", "2.5G", "64KiB"; nothing if it is no whole number that int64 holds.
std::optional<int64_t> parse_size(std::string_view text) {
  if (auto plain = parse_number<int64_t>(text)) return plain;
  struct Suffix {
    std::string_view name;
    double factor;
  };
  for (Suffix suffix :
       {Suffix{"KiB", 1024.0}, {"MiB", 1048576.0}, {"GiB", 1073741824.0}, {"k", 1e3}, {"M", 1e6}, {"G", 1e9}}) {
    if (!text.ends_with(suffix.name)) continue;
    text.remove_suffix(suffix.name.size());
    auto number = parse_number<double>(text);
    if (!number || !std::isfinite(*number)) return std::nullopt;
    double value = *number * suffix.factor;
    double whole = std::nearbyint(value);  // 2.3M is not exact in binary
    if (std::abs(value - whole) > 1e-6 || std::abs(whole) > 9e15) return std::nullopt;
    return static_cast<int64_t>(whole);
  }
  return std::nullopt;
}

std::optional<bool> parse_bool(std::string_view text) {
  if (text == "true" || text == "1") return true;
  if (text == "false" || text == "0") return false;
  return std::nullopt;
}

std::optional<std::string> parse_text(std::string_view text) {
  bool is_quoted = text.size() >= 2 && (text.front() == '"' || text.front() == '\'') && text.back() == text.front();
  return std::string(is_quoted ? text.substr(1, text.size() - 2) : text);
}

[[noreturn]] void fail_value(const FieldDescriptor& field, std::string_view text, const std::string& origin,
                             const std::string& path) {
  if (field.cpp_type() == FieldDescriptor::CPPTYPE_ENUM) {
    std::vector<std::string> names = value_names(*field.enum_type());
    std::string near = nearest(text, names);
    throw ConfigError(
        str(origin, ": ", path, " has no value '", text, "'.", near.empty() ? "" : " Did you mean '" + near + "'?"),
        "Use one of " + join(names, ", ") + ".");
  }
  throw ConfigError(str(origin, ": '", text, "' does not fit ", path, "."), "Give " + expectation(field) + ".");
}

// Calls set(value) with the reflection setter that fits singular, appended or element.
template <class T, class Set, class SetElement, class Append>
void store(const pb::Reflection& reflection, pb::Message& message, const FieldDescriptor& field, int index, T value,
           Set set, SetElement set_element, Append append) {
  if (!field.is_repeated()) (reflection.*set)(&message, &field, std::move(value));
  else if (index >= 0) (reflection.*set_element)(&message, &field, index, std::move(value));
  else (reflection.*append)(&message, &field, std::move(value));
}

}  // namespace

void set_scalar(pb::Message& message, const FieldDescriptor& field, int index, std::string_view text,
                const std::string& origin, const std::string& path) {
  using R = pb::Reflection;
  const R& reflection = *message.GetReflection();
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT64:
      if (auto value = parse_size(text))
        return store(reflection, message, field, index, *value, &R::SetInt64, &R::SetRepeatedInt64, &R::AddInt64);
      break;
    case FieldDescriptor::CPPTYPE_DOUBLE:
      if (auto value = parse_number<double>(text); value && !std::isnan(*value))
        return store(reflection, message, field, index, *value, &R::SetDouble, &R::SetRepeatedDouble, &R::AddDouble);
      break;
    case FieldDescriptor::CPPTYPE_BOOL:
      if (auto value = parse_bool(text))
        return store(reflection, message, field, index, *value, &R::SetBool, &R::SetRepeatedBool, &R::AddBool);
      break;
    case FieldDescriptor::CPPTYPE_STRING:
      if (auto value = parse_text(text))
        return store(reflection, message, field, index, *value, &R::SetString, &R::SetRepeatedString, &R::AddString);
      break;
    case FieldDescriptor::CPPTYPE_ENUM:
      if (const auto* value = field.enum_type()->FindValueByName(std::string(text)); value && value->number() != 0)
        return store(reflection, message, field, index, value, &R::SetEnum, &R::SetRepeatedEnum, &R::AddEnum);
      break;
    default:
      weft::fail(str("config schema: ", field.full_name(), " has a type without a parser"),
                 "use int64, double, bool, string or an enum");
  }
  fail_value(field, text, origin, path);
}

std::string expectation(const FieldDescriptor& field) {
  Facts known = facts(field);
  std::string range = known.range.text.empty() ? "" : " in " + known.range.text;
  std::string unit = known.unit.empty() ? "" : " " + known.unit;
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_BOOL: return "true or false";
    case FieldDescriptor::CPPTYPE_STRING: return known.is_path ? "a path" : "a text";
    case FieldDescriptor::CPPTYPE_ENUM: return "one of " + join(value_names(*field.enum_type()), ", ");
    case FieldDescriptor::CPPTYPE_DOUBLE: return "a number" + range + unit;
    case FieldDescriptor::CPPTYPE_MESSAGE: return "{ ... } with " + join(field_names(*field.message_type()), ", ");
    default: return "an integer" + range + unit;
  }
}

std::string scalar_text(const pb::Message& message, const FieldDescriptor& field, int index) {
  std::string out;
  pb::TextFormat::Printer printer;
  printer.SetUseUtf8StringEscaping(true);
  printer.PrintFieldValueToString(message, &field, field.is_repeated() ? index : -1, &out);
  return out;
}

double scalar_number(const pb::Message& message, const FieldDescriptor& field, int index) {
  const pb::Reflection& reflection = *message.GetReflection();
  if (field.cpp_type() == FieldDescriptor::CPPTYPE_DOUBLE)
    return field.is_repeated() ? reflection.GetRepeatedDouble(message, &field, index)
                               : reflection.GetDouble(message, &field);
  int64_t value =
      field.is_repeated() ? reflection.GetRepeatedInt64(message, &field, index) : reflection.GetInt64(message, &field);
  return static_cast<double>(value);
}

}  // namespace weft::config
