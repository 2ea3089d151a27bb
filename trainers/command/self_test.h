// Kernels of this machine against float64: every instruction set it runs, in f32 and bf16.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace weft::cli {

struct KernelCheck {
  std::string kernel;  // "matmul", "attention backward", ...
  std::string isa;     // "baseline", "avx2", "avx512"
  std::string dtype;   // "f32", "bf16"
  double error = 0;    // largest |kernel - float64| over the largest |float64|, inputs rounded alike
  double bound = 0;    // what rounding explains
  bool passed() const { return error <= bound; }  // false for NaN
};

// Takes about a second. The process's instruction set is the same before and after.
std::vector<KernelCheck> kernel_self_test();

}  // namespace weft::cli
