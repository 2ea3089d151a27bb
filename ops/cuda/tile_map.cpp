#include "ops/cuda/tile_map.h"

#include <array>
#include <string>

#include "src/core/cuda/runtime.h"
#include "weft/core/error.h"
#ifndef WEFT_CUDA_EMULATED
#include <cuda_runtime_api.h>
#endif

namespace weft::cuda {

namespace {

// Sizes and byte strides, fastest dimension first. Nobody follows the stride of a dimension of one element: it is what follows from the
// dimension before, in whole 16 bytes.
struct Layout {
  std::array<int64_t, 4> sizes, strides;

  Layout(const ops::core::Operand& x, int64_t batch, int64_t tokens, int64_t heads, int64_t width)
      : sizes{width, heads, tokens, batch}, strides{2, 2 * x.head_stride, 2 * x.token_stride, 2 * x.batch_stride} {
    for (size_t d = 1; d < 4; ++d)
      if (sizes[d] == 1) strides[d] = (sizes[d - 1] * strides[d - 1] + 15) / 16 * 16;
  }
};

#ifndef WEFT_CUDA_EMULATED
using Encode = decltype(&cuTensorMapEncodeTiled);

// From the driver, which is not linked: a program must start without one.
Encode encode() {
  static const Encode function = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result{};
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result),
          "find cuTensorMapEncodeTiled");
    WEFT_CHECK(found && result == cudaDriverEntryPointSuccess, "the driver has no cuTensorMapEncodeTiled",
               "use a driver for CUDA 12 or newer, or another backend of attention");
    return reinterpret_cast<Encode>(found);
  }();
  return function;
}
#endif

}  // namespace

std::string tile_map_problem(const ops::core::Operand& x, int64_t batch, int64_t tokens, int64_t heads, int64_t width) {
  const Layout layout(x, batch, tokens, heads, width);
  if (reinterpret_cast<uintptr_t>(x.data) % 16 != 0) return "its memory does not start at a multiple of 16 bytes";
  for (size_t d = 0; d < 4; ++d) {
    if (layout.sizes[d] < 1) return "it is empty";
    if (layout.sizes[d] > int64_t{1} << 31) return "a dimension has more than 2^31 elements";
    if (d > 0 && (layout.strides[d] < 16 || layout.strides[d] % 16 != 0 || layout.strides[d] >= int64_t{1} << 40))
      return str("a stride of ", layout.strides[d], " bytes is not a positive multiple of 16 below 2^40");
  }
  return "";
}

TileMap make_tile_map(const ops::core::Operand& x, int64_t batch, int64_t tokens, int64_t heads, int64_t width,
                      int rows) {
  const Layout layout(x, batch, tokens, heads, width);
  TileMap map{};
#ifdef WEFT_CUDA_EMULATED
  map.data = static_cast<const char*>(x.data), map.rows = rows;
  for (size_t d = 0; d < 4; ++d) map.sizes[d] = layout.sizes[d], map.strides[d] = layout.strides[d];
#else
  std::array<cuuint64_t, 4> sizes{};
  std::array<cuuint64_t, 3> strides{};
  for (size_t d = 0; d < 4; ++d) sizes[d] = static_cast<cuuint64_t>(layout.sizes[d]);
  for (size_t d = 0; d < 3; ++d) strides[d] = static_cast<cuuint64_t>(layout.strides[d + 1]);
  const std::array<cuuint32_t, 4> box{64, 1, static_cast<cuuint32_t>(rows), 1}, steps{1, 1, 1, 1};
  const CUresult result =
      encode()(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, const_cast<void*>(x.data), sizes.data(), strides.data(),
               box.data(), steps.data(), CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
               CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  WEFT_CHECK(result == CUDA_SUCCESS,
             str("cuTensorMapEncodeTiled says ", static_cast<int>(result), " to [", batch, ", ", tokens, ", ", heads,
                 ", ", width, "] bf16 with strides of ", layout.strides[3], ", ", layout.strides[2], " and ",
                 layout.strides[1], " bytes"),
             "please report this; another backend of attention will do");
#endif
  return map;
}

}  // namespace weft::cuda
