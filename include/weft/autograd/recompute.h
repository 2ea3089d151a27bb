// Recomputation (activation checkpointing): f runs without recording; backward runs it again with recording and differentiates
// that. What f reads besides its inputs must be the same both times; random numbers keyed by index are.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "weft/autograd/var.h"

namespace weft {

using VarFunction = std::function<std::vector<Var>(std::span<const Var>)>;

// Outputs of f(inputs). Gradients reach the inputs and whatever else of the tape f reads, such as parameters.
std::vector<Var> recompute(const VarFunction& f, std::span<const Var> inputs);

// True while backward runs some f again. Reports and statistics are then left out, because the first run has given them.
bool is_recomputing();
// True while recompute() runs f for the first time, without recording. A value that leaves f other than as its output has no gradient.
bool is_first_forward_of_recompute();

}  // namespace weft
