// The fields of a request's JSON object. Each reader returns nothing where the field is absent or null, and throws RequestError where its
// value is of another type or out of range.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace weft::serve {

class Fields {
 public:
  // RequestError if `body` is not one JSON object, is nested deeply, or has a field that is not one of `known`.
  Fields(std::string_view body, std::span<const std::string> known);

  const nlohmann::json* find(const std::string& name) const;  // null: absent or null
  std::optional<int64_t> integer(const std::string& name, int64_t lowest, int64_t highest) const;
  std::optional<double> number(const std::string& name, double lowest, double highest) const;
  std::optional<bool> boolean(const std::string& name) const;
  std::optional<std::string> text(const std::string& name) const;

 private:
  nlohmann::json object_;
};

// "max_tokens is \"ten\"": a value as an error shows it, cut where it is long.
std::string shown(std::string_view name, const nlohmann::json& value);
std::vector<int32_t> token_ids(const nlohmann::json& value, const std::string& name);  // of an array of whole numbers

}  // namespace weft::serve
