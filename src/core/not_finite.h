// The error of numbers that are not finite, or too large for what a function makes of them. A training that meets it has diverged.
#pragma once

#include <string>
#include <utility>

#include "weft/core/error.h"

namespace weft {

class NotFinite : public Error {
 public:
  explicit NotFinite(const Error& error) : Error(error) {}
};

// fail() with an error of this class, which is made of an Error.
template <class E>
[[noreturn]] void fail_as(std::string problem, std::string fix,
                          std::source_location location = std::source_location::current()) try {
  fail(std::move(problem), std::move(fix), location);
} catch (const Error& error) { throw E(error); }

}  // namespace weft
