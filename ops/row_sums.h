// Sums over rows (gradients of weights) that do not depend on the number of threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "weft/core/parallel.h"
#include "weft/core/tensor.h"

namespace weft::ops {

// Makes the outputs, C tensors of given shape, by adding up what f(begin, end, sums) adds to `sums` for blocks of rows:
// the elements of all outputs one after the other, zeros at first. There are at most 64 blocks, of the same rows
// whatever the number of threads, and they are added in order. `width` is the cost of a row in elements.
// A long block is summed in pieces, so that the error does not grow with the number of rows.
template <class C, class F>
void sum_row_blocks(int64_t rows, int64_t width, std::initializer_list<Tensor*> outputs, F&& f) {
  constexpr int64_t kMaxBlocks = 64, kElements = 4096, kPieceRows = 128;
  const int64_t block = std::max((rows + kMaxBlocks - 1) / kMaxBlocks, 1 + kElements / std::max<int64_t>(width, 1));
  const int64_t blocks = (rows + block - 1) / block;
  int64_t length = 0;
  for (Tensor* output : outputs) length += output->num_elements();
  const bool has_pieces = block > kPieceRows;
  Tensor partial = Tensor::empty({has_pieces ? 2 * blocks : blocks, length}, dtype_of<C>(), Device::cpu());
  C *partials = partial.mutable_data<C>(), *pieces = partials + blocks * length;
  parallel_items(blocks, [&](int64_t i) {
    const int64_t end = std::min(rows, (i + 1) * block);
    C* sums = partials + i * length;
    std::fill_n(sums, length, C(0));
    if (!has_pieces) return f(i * block, end, sums);
    C* piece = pieces + i * length;
    for (int64_t row = i * block; row < end; row += kPieceRows) {
      std::fill_n(piece, length, C(0));
      f(row, std::min(end, row + kPieceRows), piece);
      for (int64_t j = 0; j < length; ++j) sums[j] += piece[j];
    }
  });
  for (Tensor* output : outputs) {
    const int64_t n = output->num_elements();
    C* totals = output->mutable_data<C>();
    std::fill_n(totals, n, C(0));
    for (int64_t i = 0; i < blocks; ++i)
      for (int64_t j = 0; j < n; ++j) totals[j] += partials[i * length + j];
    partials += n;
  }
}

}  // namespace weft::ops
