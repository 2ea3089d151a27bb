// Reductions on CUDA devices: the same calls as ops/cpu/reduce.h.
#pragma once

#include "ops/cpu/reduce.h"

namespace weft::cuda {

using cpu::Reduction;

void reduce(Tensor& out, const Tensor& x, unsigned reduced, Reduction kind, double scale);
void argmax(Tensor& out, const Tensor& x, int dim);
double sum_of_squares(std::span<const Tensor> all);  // of one device; one wait
bool all_finite(const Tensor& x);
void cumsum(Tensor& y, const Tensor& x, int dim, const ops::CumsumOptions& options);
void windowed_sum(Tensor& y, const Tensor& x, int dim, const ops::CumsumOptions& options);

}  // namespace weft::cuda
