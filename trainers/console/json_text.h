// JSON as a command prints it. Names of folders may be any bytes: those that are no UTF-8 are replaced.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace weft::cli {

inline std::string json_text(const nlohmann::ordered_json& json) {
  return json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

}  // namespace weft::cli
