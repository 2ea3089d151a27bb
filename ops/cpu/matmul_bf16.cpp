// bf16 products through f32, for CPUs where oneDNN has none: panels of a and b are widened, multiplied, and the f32 panel of
// c is rounded once. The f32 route packs its operands again for every panel, so panels are as large as a third-level cache
// takes: 2 to 5 % slower than f32 itself on Zen 3, where panels of second-level size cost 5 to 35 %.
#include <algorithm>

#include "ops/cpu/gemm.h"
#include "ops/cpu/isa.h"
#include "ops/cpu/matmul_kernels.h"
#include "weft/core/parallel.h"
#include "weft/core/tensor.h"

namespace weft::cpu {

namespace {

constexpr int64_t kPanelOfA = int64_t{1} << 21, kPanelOfB = int64_t{1} << 22, kPanelOfC = int64_t{1} << 22;  // elements
constexpr int64_t kMaxDepth = 4096;

// Widens rows x cols of x from (row, col) on; the stored order, transposed or not, is kept.
GemmOperand widen(const GemmOperand& x, int64_t row, int64_t col, int64_t rows, int64_t cols, float* to) {
  int64_t outer = x.is_transposed ? cols : rows, inner = x.is_transposed ? rows : cols;
  const auto* from = static_cast<const BFloat16*>(x.data) + (x.is_transposed ? col * x.ld + row : row * x.ld + col);
  parallel_for(outer, std::max<int64_t>(1, 16384 / inner), [&](int64_t begin, int64_t end) {
    with_isa([&]<Isa I>() {
      MatmulKernels<I>::widen(from + begin * x.ld, x.ld, end - begin, inner, to + begin * inner, inner);
    });
  });
  return {to, x.is_transposed, inner};
}

void narrow(const float* from, int64_t rows, int64_t cols, const BFloat16* bias, BFloat16* to, int64_t to_ld) {
  parallel_for(rows, std::max<int64_t>(1, 16384 / cols), [&](int64_t begin, int64_t end) {
    with_isa([&]<Isa I>() {
      MatmulKernels<I>::narrow(from + begin * cols, cols, bias, end - begin, cols, to + begin * to_ld, to_ld);
    });
  });
}

Tensor scratch(int64_t elements) { return Tensor::empty({elements}, kF32, Device::cpu()); }

}  // namespace

void gemm_bf16_by_f32(const Gemm& g) {
  const int64_t depth = std::min(g.k, kMaxDepth), width = std::min(g.n, std::max<int64_t>(256, kPanelOfB / depth));
  const bool keeps_f32 = g.out == kF32, is_deep = depth < g.k;
  const int64_t height = std::min(g.m, std::max<int64_t>(256, std::min(kPanelOfA / depth, kPanelOfC / width)));
  Tensor b_panel = scratch(depth * width), a_panel = scratch(height * depth), c_panel;
  // Sums over several depths need all rows of c in f32 between them; otherwise a panel of rows is finished at once.
  if (!keeps_f32) c_panel = scratch((is_deep ? g.m : height) * width);

  for (int64_t n0 = 0; n0 < g.n; n0 += width) {
    for (int64_t k0 = 0; k0 < g.k; k0 += depth) {
      Gemm part;
      part.n = std::min(width, g.n - n0), part.k = std::min(depth, g.k - k0);
      part.b = widen(g.b, k0, n0, part.k, part.n, b_panel.mutable_data<float>());
      for (int64_t m0 = 0; m0 < g.m; m0 += height) {
        part.m = std::min(height, g.m - m0);
        part.a = widen(g.a, m0, k0, part.m, part.k, a_panel.mutable_data<float>());
        part.beta = k0 > 0 ? 1 : keeps_f32 ? g.beta : 0;
        if (keeps_f32) {
          part.c = static_cast<float*>(g.c) + m0 * g.ldc + n0, part.ldc = g.ldc;
          gemm_f32(part);
          continue;
        }
        float* c = c_panel.mutable_data<float>() + (is_deep ? m0 * part.n : 0);
        part.c = c, part.ldc = part.n;
        gemm_f32(part);
        if (k0 + part.k < g.k) continue;
        const auto* bias = static_cast<const BFloat16*>(g.bias);
        narrow(c, part.m, part.n, bias ? bias + n0 : nullptr, static_cast<BFloat16*>(g.c) + m0 * g.ldc + n0, g.ldc);
      }
    }
  }
}

}  // namespace weft::cpu
