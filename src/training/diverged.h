// The error of a training that cannot go on from where it is: its loss is not finite, or its guard refuses every step.
#pragma once

#include "weft/core/error.h"

namespace weft {

class Diverged : public Error {
 public:
  explicit Diverged(const Error& error) : Error(error) {}
};

}  // namespace weft
