#include "ops/cpu/norm_rows.h"

namespace weft::cpu {

bool make_rows(const Tensor& x, Rows& rows) {
  rows = Rows{};
  rows.width = x.num_dims() ? x.shape().back() : 1;
  int last = x.num_dims() - 1;
  if (last >= 0 && rows.width > 1 && x.strides()[last] != 1) return false;
  int level = Rows::kLevels;  // levels from here on are in use; filled from the innermost outwards
  for (int dim = last - 1; dim >= 0; --dim) {
    int64_t size = x.shape()[dim], stride = x.strides()[dim];
    rows.count *= size;
    if (size == 1) continue;
    if (level < Rows::kLevels && rows.sizes[level] * rows.strides[level] == stride) {
      rows.sizes[level] *= size;
      continue;
    }
    if (level == 0) return false;
    --level;
    rows.sizes[level] = size;
    rows.strides[level] = stride;
  }
  return true;
}

}  // namespace weft::cpu
