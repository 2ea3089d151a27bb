// How deeply a JSON text is nested, known before it is parsed.
#pragma once

#include <string_view>

namespace weft::data {

// Right up to the first fault of a text that is no JSON; a parser stops there. One pass: nlohmann's parser with a callback takes time that
// is quadratic in the objects of an array.
inline bool is_nested_deeper(std::string_view json, int levels) {
  int depth = 0;
  bool is_in_string = false;
  for (size_t at = 0; at < json.size(); ++at) {
    const char c = json[at];
    if (is_in_string) {
      if (c == '\\') ++at;
      else if (c == '"') is_in_string = false;
    } else if (c == '"') {
      is_in_string = true;
    } else if (c == '[' || c == '{') {
      if (++depth > levels) return true;
    } else if (c == ']' || c == '}') {
      --depth;
    }
  }
  return false;
}

}  // namespace weft::data
