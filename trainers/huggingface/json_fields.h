// Reading an object of a JSON file whose fields others chose: numbers are checked against a range, and what nobody asked for is known.
#pragma once

#include <cstdint>
#include <limits>
#include <nlohmann/json_fwd.hpp>
#include <set>
#include <string>
#include <vector>

namespace weft::huggingface {

// The document in a file. Error that names path and byte if it is larger than `max_bytes`, nested deeper than any config is, or no JSON.
nlohmann::json read_json(const std::string& path, uint64_t max_bytes);

// A field that is absent or null has the value `missing`. One of another type, or out of its range, is an Error that names it.
class JsonFields {
 public:
  // `where` is what errors call it: "config.json" or "config.json: rope_parameters".
  JsonFields(const nlohmann::json& object, std::string where);

  int64_t integer(const std::string& key, int64_t missing, int64_t lowest = 1,
                  int64_t highest = std::numeric_limits<int32_t>::max());
  double number(const std::string& key, double missing, double lowest, double highest);
  bool flag(const std::string& key, bool missing);
  std::string text(const std::string& key, const std::string& missing);
  const nlohmann::json* find(const std::string& key);  // null if it is absent or null

  // Error if a field has another value than those that are known here.
  void expect_text(const std::string& key, const std::string& missing, const std::vector<std::string>& known);
  void expect_flag(const std::string& key, bool only);
  void ignore(const std::vector<std::string>& keys);
  // Of fields that nobody has asked for.
  std::vector<std::string> unread() const;
  const std::string& where() const { return where_; }

 private:
  [[noreturn]] void refuse(const std::string& key, const std::string& wanted) const;

  const nlohmann::json& object_;
  std::string where_;
  std::set<std::string> read_;
};

}  // namespace weft::huggingface
