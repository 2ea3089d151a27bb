// Joins what attend() gave for disjoint sets of keys, with gradients: branches over chosen blocks, memories beside a window.
//   auto [out, lse] = merge(attend(q, near_k, near_v, ...), attend(q, far_k, far_v, ...));
#pragma once

#include <array>

#include "weft/autograd/var.h"

namespace weft {

// {out [B, T, H, V], lse [B, T, H]} of the keys of both sides, in f32 (f64 for f64). Both sides have an lse, or none (the sum normaliser). A
// query that saw no key on one side has exactly the result of the other.
std::array<Var, 2> merge(const std::array<Var, 2>& a, const std::array<Var, 2>& b);

}  // namespace weft
