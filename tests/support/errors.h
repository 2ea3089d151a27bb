// Error texts are tested: error_of(call, {substrings}) is "" if the call throws weft::Error with all of them, else says what is wrong.
#pragma once

#include <initializer_list>
#include <span>
#include <string>
#include <string_view>

#include "weft/core/error.h"

namespace weft::test {

template <class F>
std::string error_of(F&& call, std::span<const std::string_view> parts) {
  try {
    call();
  } catch (const Error& error) {
    std::string text = error.what();
    for (std::string_view part : parts)
      if (text.find(part) == std::string::npos) return "'" + std::string(part) + "' is not in: " + text;
    return "";
  }
  return "no error";
}
template <class F>
std::string error_of(F&& call, std::initializer_list<std::string_view> parts) {
  return error_of(call, std::span<const std::string_view>(parts.begin(), parts.size()));
}

}  // namespace weft::test
