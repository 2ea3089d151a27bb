// Recomputation (activation checkpointing): f runs without recording; backward runs it again with recording and differentiates
// that. What f reads besides its inputs must be the same both times; random numbers keyed by index are. Kept for backward are the inputs of f,
// and of each call of attention in it, which costs too much to run twice, the result: B T H (V b + 4) bytes, for B T queries of H heads, V
// wide, of b bytes. So attention over ranks sends its messages once forward and once backward.
#pragma once

#include <functional>
#include <span>
#include <string_view>
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

// For functions that record() a costly result: compute(), or inside recompute() the tensors that it gave in the first run. They are kept with
// the other values of that recompute(). Both runs ask for the same results in the same order; `op` is the name in errors. Results that no
// gradient goes through, under NoGrad, are not kept.
std::vector<Tensor> kept_by_recompute(std::string_view op, const std::function<std::vector<Tensor>()>& compute);

}  // namespace weft
