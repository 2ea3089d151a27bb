#include "trainers/config/scalar.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>
#include <google/protobuf/text_format.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <optional>

#include "trainers/config/config_error.h"
#include "trainers/config/schema.h"

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

struct Suffix {
  std::string_view name;
  int64_t factor;
};
constexpr Suffix kSuffixes[] = {{"k", 1'000},
                                {"M", 1'000'000},
                                {"G", 1'000'000'000},
                                {"KiB", int64_t{1} << 10},
                                {"MiB", int64_t{1} << 20},
                                {"GiB", int64_t{1} << 30}};
constexpr const char* kSuffixHelp =
    "suffixes are k, M, G (thousand, million, 10^9) and KiB, MiB, GiB (1024, 1024^2, 1024^3); 1e6 is one million";

// Divides one of the two by `divisor` if it goes without a remainder.
bool divide_one(int64_t& a, int64_t& b, int64_t divisor) {
  if (a % divisor == 0) return a /= divisor, true;
  if (b % divisor == 0) return b /= divisor, true;
  return false;
}

// digits * 10^exponent * factor; nothing if that is no whole number, or none that int64 holds.
std::optional<int64_t> exact_product(int64_t digits, int64_t exponent, int64_t factor) {
  if (digits == 0) return 0;
  for (; exponent < 0; ++exponent)
    if (!divide_one(digits, factor, 2) || !divide_one(digits, factor, 5)) return std::nullopt;
  for (; exponent > 0; --exponent)
    if (__builtin_mul_overflow(digits, int64_t{10}, &digits)) return std::nullopt;
  if (__builtin_mul_overflow(digits, factor, &digits)) return std::nullopt;
  return digits;
}

// "2.5", "1e6", "-3" times the factor.
std::optional<int64_t> parse_decimal(std::string_view text, int64_t factor) {
  int64_t exponent = 0;
  if (size_t e = text.find_first_of("eE"); e != std::string_view::npos) {
    auto number = parse_number<int64_t>(text.substr(e + 1));
    if (!number || std::abs(*number) > 400) return std::nullopt;
    exponent = *number;
    text = text.substr(0, e);
  }
  std::string digits(text);
  if (size_t point = digits.find('.'); point != std::string::npos) {
    exponent -= static_cast<int64_t>(digits.size() - point - 1);
    digits.erase(point, 1);
  }
  auto number = parse_number<int64_t>(digits);
  return number ? exact_product(*number, exponent, factor) : std::nullopt;
}

// "4096", "1e6", "2.5G", "64KiB"; nothing if it is no whole number that int64 holds.
std::optional<int64_t> parse_size(std::string_view text) {
  for (Suffix suffix : kSuffixes)
    if (text.ends_with(suffix.name))
      return parse_decimal(text.substr(0, text.size() - suffix.name.size()), suffix.factor);
  return parse_decimal(text, 1);
}

char lower(char c) { return static_cast<char>(std::tolower(static_cast<unsigned char>(c))); }

// Known suffixes with the letters of the unknown one behind the number in `text`: "60K" gives "60k", "60KiB"; "1,000" gives "1000".
std::vector<std::string> meant_sizes(std::string_view text) {
  size_t letters = text.find_first_not_of("0123456789.+-");
  if (letters == std::string_view::npos || letters == 0) return {};
  std::string digits(text);
  std::erase_if(digits, [](char c) { return c == ',' || c == '_' || c == '\'' || c == ' '; });
  if (digits.size() < text.size() && parse_size(digits)) return {digits};
  std::vector<std::string> out;
  std::string_view word = text.substr(letters);
  for (Suffix suffix : kSuffixes) {
    bool is_like = std::equal(word.begin(), word.end(), suffix.name.begin(), suffix.name.end(),
                              [](char a, char b) { return lower(a) == lower(b); });
    bool is_unit =
        word.size() <= 2 && lower(word[0]) == lower(suffix.name[0]) && (word.size() == 1 || lower(word[1]) == 'b');
    std::string candidate = str(text.substr(0, letters), suffix.name);
    if ((is_like || is_unit) && parse_size(candidate)) out.push_back(candidate);
  }
  return out;
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

// " Did you mean '60k' (60000) or '60KiB' (61440)?", or nothing.
std::string size_suggestion(std::string_view text) {
  std::string out;
  for (const std::string& meant : meant_sizes(text))
    out += str(out.empty() ? " Did you mean '" : " or '", meant, "' (", parse_size(meant).value(), ")");
  return out.empty() ? out : out + "?";
}

// A number with something behind it, for a whole number.
bool looks_like_size(const FieldDescriptor& field, std::string_view text) {
  return field.cpp_type() == FieldDescriptor::CPPTYPE_INT64 && text.find_first_of("0123456789") == 0 &&
         text.find_first_not_of("0123456789") != std::string_view::npos;
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
  throw ConfigError(
      str(origin, ": '", text, "' does not fit ", path, ".", looks_like_size(field, text) ? size_suggestion(text) : ""),
      "Give " + expectation(field) + (looks_like_size(field, text) ? str("; ", kSuffixHelp, ".") : "."));
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
    case FieldDescriptor::CPPTYPE_INT32:
    case FieldDescriptor::CPPTYPE_UINT32:
    case FieldDescriptor::CPPTYPE_UINT64:
    case FieldDescriptor::CPPTYPE_FLOAT:
    case FieldDescriptor::CPPTYPE_MESSAGE:
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
    case FieldDescriptor::CPPTYPE_FLOAT:
    case FieldDescriptor::CPPTYPE_DOUBLE: return "a number" + range + unit;
    case FieldDescriptor::CPPTYPE_MESSAGE: return "{ ... } with " + join(field_names(*field.message_type()), ", ");
    case FieldDescriptor::CPPTYPE_INT32:
    case FieldDescriptor::CPPTYPE_INT64:
    case FieldDescriptor::CPPTYPE_UINT32:
    case FieldDescriptor::CPPTYPE_UINT64: break;
  }
  return "an integer" + range + unit;
}

std::string scalar_text(const pb::Message& message, const FieldDescriptor& field, int index) {
  std::string out;
  pb::TextFormat::Printer printer;
  printer.SetUseUtf8StringEscaping(true);
  printer.PrintFieldValueToString(message, &field, field.is_repeated() ? index : -1, &out);
  return out;
}

std::string scalar_or_empty(const pb::Message& message, const FieldDescriptor& field) {
  bool is_scalar = !field.is_repeated() && field.cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE;
  return is_scalar ? scalar_text(message, field, -1) : "";
}

std::optional<int64_t> size_in_text(std::string_view text) { return parse_size(text); }

int64_t size_of_text(const std::string& text, const std::string& origin) {
  if (auto value = parse_size(text)) return *value;
  throw ConfigError(str(origin, ": '", text, "' is no whole number.", size_suggestion(text)),
                    str("Give an integer; ", kSuffixHelp, "."));
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
