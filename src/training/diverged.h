// The error of a training that cannot go on from where it is: its loss is not finite, or its guard refuses every step.
#pragma once

#include "weft/core/error.h"

namespace weft {

class Diverged : public Error {
 public:
  explicit Diverged(const Error& error) : Error(error) {}
};

[[noreturn]] inline void fail_diverged(std::string problem, std::string fix,
                                       std::source_location location = std::source_location::current()) try {
  fail(std::move(problem), std::move(fix), location);
} catch (const Error& error) { throw Diverged(error); }

}  // namespace weft
