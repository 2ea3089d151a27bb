#include "trainers/serve/fields.h"

#include <algorithm>
#include <limits>

#include "src/data/json_depth.h"
#include "trainers/config/config_error.h"
#include "trainers/serve/request_error.h"
#include "weft/core/error.h"
#include "weft/data/tokenizer.h"

namespace weft::serve {

namespace {

using nlohmann::json;

constexpr int kDepth = 4;  // {"prompt": [[1, 2]]} has 3: a deeper one costs memory and says nothing
constexpr size_t kShown = 60, kShownError = 200;

json parse(std::string_view body) {
  if (data::is_nested_deeper(body, kDepth))
    throw RequestError(400, str("the request is nested deeper than ", kDepth, " levels; send one JSON object"));
  try {
    return json::parse(body.begin(), body.end());
  } catch (const json::exception& error) {
    throw RequestError(
        400, str("the request is not valid JSON: ",
                 data::show_utf8(std::string_view(error.what()).substr(0, kShownError)), "; send one JSON object"));
  }
}

}  // namespace

std::string shown(std::string_view name, const json& value) {
  std::string text = value.dump(-1, ' ', false, json::error_handler_t::replace);
  if (text.size() > kShown) text = data::show_utf8(text.substr(0, kShown)) + "...";
  return str(name, " is ", text);
}

Fields::Fields(std::string_view body, std::span<const std::string> known) : object_(parse(body)) {
  if (!object_.is_object())
    throw RequestError(400, str("the request is a JSON ", object_.type_name(), "; send one JSON object"));
  for (const auto& [name, value] : object_.items())
    if (std::find(known.begin(), known.end(), name) == known.end())
      throw RequestError(400,
                         str("there is no field '", data::show_utf8(std::string_view(name).substr(0, kShown)), "'. ",
                             config::suggestion(name.substr(0, kShown), known, "Fields")),
                         name.substr(0, kShown));
}

const json* Fields::find(const std::string& name) const {
  const auto found = object_.find(name);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

std::optional<int64_t> Fields::integer(const std::string& name, int64_t lowest, int64_t highest) const {
  const json* value = find(name);
  if (!value) return {};
  const bool is_large = value->is_number_unsigned() &&
                        value->get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
  if (!value->is_number_integer() || is_large || value->get<int64_t>() < lowest || value->get<int64_t>() > highest)
    throw RequestError(400, str(shown(name, *value), "; give a whole number from ", lowest, " to ", highest), name);
  return value->get<int64_t>();
}

std::optional<double> Fields::number(const std::string& name, double lowest, double highest) const {
  const json* value = find(name);
  if (!value) return {};
  if (!value->is_number() || !(value->get<double>() >= lowest && value->get<double>() <= highest))
    throw RequestError(400, str(shown(name, *value), "; give a number from ", lowest, " to ", highest), name);
  return value->get<double>();
}

std::optional<bool> Fields::boolean(const std::string& name) const {
  const json* value = find(name);
  if (!value) return {};
  if (!value->is_boolean()) throw RequestError(400, str(shown(name, *value), "; give true or false"), name);
  return value->get<bool>();
}

std::optional<std::string> Fields::text(const std::string& name) const {
  const json* value = find(name);
  if (!value) return {};
  if (!value->is_string()) throw RequestError(400, str(shown(name, *value), "; give a text"), name);
  return value->get<std::string>();
}

std::vector<int32_t> token_ids(const json& value, const std::string& name) {
  std::vector<int32_t> ids;
  ids.reserve(value.size());
  for (const json& id : value) {
    const bool fits = id.is_number_integer() && (!id.is_number_unsigned() || id.get<uint64_t>() < (uint64_t{1} << 31));
    if (!fits || id.get<int64_t>() < 0 || id.get<int64_t>() > std::numeric_limits<int32_t>::max())
      throw RequestError(400,
                         str(shown(str(name, "[", ids.size(), "]"), id), "; give token ids, whole numbers from 0 on"),
                         name.substr(0, name.find('[')));
    ids.push_back(id.get<int32_t>());
  }
  return ids;
}

}  // namespace weft::serve
