// Random values on the CPU, keyed by global index.
#pragma once

#include "ops/cpu/isa.h"
#include "weft/core/rng.h"
#include "weft/core/tensor.h"

namespace weft::cpu {

// Element i in row-major order is mean + std * rng.normal(i), or low + (high - low) * rng.uniform(i), rounded once to the dtype.
void fill_normal(Tensor& x, Rng rng, double mean, double std);
void fill_uniform(Tensor& x, Rng rng, double low, double high);

// One token of dropout: its place, and which numbers drop (upper 24 bits below `dropped`).
struct DropoutToken {
  int64_t dim;
  uint32_t position;
  uint64_t row, key;
  uint32_t dropped;
  double factor;  // 1 / (1 - p)
};
template <Isa I>
struct RandomKernels {
  static void dropout(DType dtype, const DropoutToken& token, const void* x, void* y);  // x, y: [dim]
};

// Channel d of the token at position t in row b is kept if word d % 4 of rng.bits(t << 32 | d / 4, first_row + b) says so.
// x, y and positions are row-major.
void dropout(Tensor& y, const Tensor& x, const Tensor& positions, double p, Rng rng, int64_t first_row);

}  // namespace weft::cpu
