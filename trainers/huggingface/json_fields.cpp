#include "trainers/huggingface/json_fields.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "src/data/json_depth.h"
#include "trainers/config/config_error.h"
#include "weft/core/error.h"
#include "weft/data/tokenizer.h"
#include "weft/io/files.h"

namespace weft::huggingface {

namespace {

constexpr int kMaxDepth = 32;
constexpr const char* kFix = "give a folder as transformers' save_pretrained() writes it";

// What an error shows of a value.
std::string shown(const nlohmann::json& value) {
  std::string text = value.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
  return data::show_utf8(text.size() > 60 ? text.substr(0, 60) + " ..." : text);
}

}  // namespace

nlohmann::json read_json(const std::string& path, uint64_t max_bytes) {
  const std::string text = io::read_file(path, max_bytes);
  WEFT_CHECK(!data::is_nested_deeper(text, kMaxDepth), str(path, ": nested deeper than ", kMaxDepth, " levels"), kFix);
  try {
    return nlohmann::json::parse(text);
  } catch (const nlohmann::json::exception& error) {
    fail(str(path, ": not valid JSON: ", data::show_utf8(error.what())), kFix);
  }
}

JsonFields::JsonFields(const nlohmann::json& object, std::string where) : object_(object), where_(std::move(where)) {
  WEFT_CHECK(object.is_object(), str(where_, ": is ", object.type_name(), " where an object is needed"), kFix);
}

void JsonFields::refuse(const std::string& key, const std::string& wanted) const {
  fail(str(where_, ": ", key, " is ", shown(object_.at(key)), ", not ", wanted), kFix);
}

const nlohmann::json* JsonFields::find(const std::string& key) {
  read_.insert(key);
  auto at = object_.find(key);
  return at == object_.end() || at->is_null() ? nullptr : &*at;
}

int64_t JsonFields::integer(const std::string& key, int64_t missing, int64_t lowest, int64_t highest) {
  const nlohmann::json* value = find(key);
  if (!value) return missing;
  const std::string wanted = str("a whole number from ", lowest, " to ", highest);
  if (!value->is_number_integer()) refuse(key, wanted);
  // Numbers above the largest signed one are unsigned.
  if (value->is_number_unsigned() && value->get<uint64_t>() > static_cast<uint64_t>(highest)) refuse(key, wanted);
  const auto number = value->get<int64_t>();
  if (number < lowest || number > highest) refuse(key, wanted);
  return number;
}

double JsonFields::number(const std::string& key, double missing, double lowest, double highest) {
  const nlohmann::json* value = find(key);
  if (!value) return missing;
  const std::string wanted = str("a number from ", lowest, " to ", highest);
  if (!value->is_number()) refuse(key, wanted);
  const auto number = value->get<double>();
  if (!(number >= lowest && number <= highest)) refuse(key, wanted);
  return number;
}

bool JsonFields::flag(const std::string& key, bool missing) {
  const nlohmann::json* value = find(key);
  if (!value) return missing;
  if (!value->is_boolean()) refuse(key, "true or false");
  return value->get<bool>();
}

std::string JsonFields::text(const std::string& key, const std::string& missing) {
  const nlohmann::json* value = find(key);
  if (!value) return missing;
  if (!value->is_string()) refuse(key, "a text");
  return value->get<std::string>();
}

void JsonFields::expect_text(const std::string& key, const std::string& missing,
                             const std::vector<std::string>& known) {
  const std::string value = text(key, missing);
  WEFT_CHECK(std::find(known.begin(), known.end(), value) != known.end(),
             str(where_, ": ", key, " is \"", data::show_utf8(value), "\", which Weft does not have"),
             str("known here: ", config::join(known, ", ")));
}

void JsonFields::expect_flag(const std::string& key, bool only) {
  WEFT_CHECK(flag(key, only) == only,
             str(where_, ": ", key, " is ", only ? "false" : "true", ", which Weft does not have"),
             str("only ", key, " = ", only ? "true" : "false", " is known here"));
}

void JsonFields::ignore(const std::vector<std::string>& keys) { read_.insert(keys.begin(), keys.end()); }

std::vector<std::string> JsonFields::unread() const {
  std::vector<std::string> out;
  for (const auto& [key, value] : object_.items())
    if (!read_.contains(key)) out.push_back(key);
  return out;
}

}  // namespace weft::huggingface
