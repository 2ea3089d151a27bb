// Where the rows of a tensor start: the leading dimensions merged as far as their strides allow, the last one
// contiguous. A heads view [B, T, H, K] cut out of a fused [B, T, 3 H K] needs two levels, so a kernel reads it without
// a copy.
#pragma once

#include <cstdint>

#include "weft/core/tensor.h"

namespace weft::cpu {

struct Rows {
  static constexpr int kLevels = 3;
  int64_t count = 1;                     // rows altogether
  int64_t width = 1;                     // elements of a row
  int64_t sizes[kLevels] = {1, 1, 1};    // outermost first
  int64_t strides[kLevels] = {0, 0, 0};  // in elements
};

// False if the last dimension is not contiguous or the others need more levels: copy it first.
bool make_rows(const Tensor& x, Rows& rows);

namespace {  // used in kernel files, which are compiled several times: the linker must not share these functions

// Walks over consecutive rows without a division per row.
template <class T>
class RowCursor {
 public:
  RowCursor(T* base, const Rows& rows, int64_t first) : base_(base), rows_(rows) {
    for (int level = Rows::kLevels - 1; level > 0; --level) {
      index_[level] = first % rows.sizes[level];
      first /= rows.sizes[level];
    }
    index_[0] = first;
    seek();
  }
  T* get() const { return row_; }
  void next() {
    constexpr int last = Rows::kLevels - 1;
    row_ += rows_.strides[last];
    if (++index_[last] < rows_.sizes[last]) return;
    for (int level = last; level > 0 && index_[level] == rows_.sizes[level]; --level) {
      index_[level] = 0;
      ++index_[level - 1];
    }
    seek();
  }

 private:
  void seek() {
    row_ = base_;
    for (int level = 0; level < Rows::kLevels; ++level) row_ += index_[level] * rows_.strides[level];
  }

  T* base_;
  T* row_ = nullptr;
  const Rows& rows_;
  int64_t index_[Rows::kLevels] = {};
};

}  // namespace

}  // namespace weft::cpu
