// The error of a wrong command line or config (exit code 2), and the search for the word that was meant.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "weft/core/error.h"

namespace weft::config {

// A usage or config error. `problem` starts with file:line:column or the argument; there is no source location in it,
// because the user's own text is at fault.
class ConfigError : public Error {
 public:
  ConfigError(std::string problem, std::string fix) : Error(std::move(problem), "", std::move(fix)) {}
};

// The candidate that was probably meant: edit distance of at most 2, else the longest shared prefix of at least three
// letters; empty if there is none.
std::string nearest(std::string_view word, std::span<const std::string> candidates);

// "Did you mean 'x'?" or, without a near one, "<label>: a, b, c".
std::string suggestion(std::string_view word, std::span<const std::string> candidates, std::string_view label);

// ConfigError "<argument> <name>: no such <what>. Did you mean 'x'?", with all of them in the fix, if `name` is none of `names`.
void check_choice(std::string_view argument, std::string_view name, std::span<const std::string> names,
                  std::string_view what);

std::string join(std::span<const std::string> words, std::string_view separator);

}  // namespace weft::config
