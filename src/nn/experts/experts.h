// Running the experts that tokens chose.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "weft/autograd/functions.h"

namespace weft {

// Under which name a mixer leaves its experts for the feed-forward network of its block: "up" [E, F, D] and "down" [E, D, F].
std::string shared_experts(std::string_view block, std::string_view what);

// Slots (token n, choice k) sorted by expert, then by slot: each expert sees its rows together.
struct ExpertOrder {
  Tensor slots;                 // [M] i32: n K + k in the order of experts
  Tensor places;                // [N K] i32: where a slot stands in that order
  std::vector<int64_t> begins;  // [E + 1]: rows of an expert
};
ExpertOrder order_by_expert(const Tensor& chosen_NK, int64_t experts);

// Expert e on rows [n, C] -> [n, C'].
using Expert = std::function<Var(int64_t expert, const Var& rows)>;

// What the chosen experts make of x [N, C], or of x [N, K, C] with a row of its own per choice: [N, K, C']. Grouped: each expert runs
// on its own rows only, so the height of its products depends on all tokens; dense: on all rows, and the rest is thrown away.
Var run_experts(const Var& x, const Tensor& chosen_NK, int64_t experts, bool is_dense, const Expert& expert);

}  // namespace weft
