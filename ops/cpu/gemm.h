// The routes of a matrix product on the CPU.
#pragma once

#include "ops/gemm_operands.h"

namespace weft::cpu {

using ops::Gemm;
using ops::GemmOperand;
using ops::kMaxBatchDims;
using ops::product;

// bf16 products on a machine where oneDNN has no bf16: panels are widened to f32 in cache and go through the f32 route.
void gemm_bf16_by_f32(const Gemm& g);  // one product
void gemm_f64(const Gemm& g);          // one product, own loop

// The f32 route, chosen by a rule on shapes: the same call always takes the same route.
void gemm_f32(const Gemm& g);

}  // namespace weft::cpu
