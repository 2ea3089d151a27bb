// What parts of a model give, own parts above all.
#pragma once

#include "weft/autograd/var.h"
#include "weft/core/error.h"

namespace weft {

// Error unless the part gave y of x's shape and dtype. Called in the part's own scope: what adds or reads y would be blamed otherwise.
inline void check_output(const Var& y, const Var& x, const char* part) {
  WEFT_CHECK(y.defined() && y.shape() == x.shape() && y.dtype() == x.dtype(),
             str(part, ": gave ", y.value(), " for ", x.value()), "give a Var of the input's shape and dtype");
}

}  // namespace weft
