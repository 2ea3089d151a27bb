// Normalisations over the last dimension; softmax over any (weft/ops/norm.h).
#pragma once

#include <array>

#include "weft/autograd/var.h"

namespace weft {

Var rms_norm(const Var& x, const Var& weight, double eps);
Var layer_norm(const Var& x, const Var& weight, const Var& bias, double eps);
// {x + added, norm of that}: one pass over memory each way, the same bits as the sum and then its norm. x and added have one shape and dtype.
std::array<Var, 2> add_rms_norm(const Var& x, const Var& added, const Var& weight, double eps);
std::array<Var, 2> add_layer_norm(const Var& x, const Var& added, const Var& weight, const Var& bias, double eps);
Var softmax(const Var& x, int64_t dim = -1);
Var log_softmax(const Var& x, int64_t dim = -1);
Var logsumexp(const Var& x, int64_t dim = -1);

}  // namespace weft
