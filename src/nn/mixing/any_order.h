// Sums over earlier tokens, where tokens stand here in any order: within runs, then few numbers per run.
// x [B, T, ...], tokens and documents as the runs say.
#pragma once

#include <span>

#include "src/nn/mixing/runs.h"
#include "weft/autograd/var.h"

namespace weft {

// The tokens `which` of the B T: [1, which, ...], or where they are as many as all, [B, T, ...].
Var take_tokens(const Var& x, std::span<const int32_t> which);
// Inclusive sum over the tokens of the document up to each.
Var scan_in_runs(const Var& x, const Runs& runs);

}  // namespace weft
