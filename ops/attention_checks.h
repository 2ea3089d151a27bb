// Checks of single tensors that calls of attention share. Each is an Error that says what, the shapes, and what to do.
#pragma once

#include <string_view>

#include "weft/ops/attention/problem.h"

namespace weft::ops::core {

DType compute_type(DType dtype);  // f64 for f64, else f32

// `side` says what `device` is the device of.
void check_device(std::string_view op, std::string_view name, const Tensor& t, std::string_view side, Device device);

// [batch, tokens, heads, width] of `dtype`, floating, its last dimension dense.
void check_heads(std::string_view op, std::string_view name, const Tensor& t, DType dtype);

Operand operand(const Tensor& t);

// The memory of contiguous [batch, queries, heads] in the computing type.
const void* bind_rows(std::string_view op, std::string_view name, const Tensor& t, const Problem& p);

}  // namespace weft::ops::core
