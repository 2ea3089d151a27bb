// dQ of a block of queries: a sum of one tile per block of keys. The first kTilesOfSum tiles are added to the caller's memory. Later ones
// are summed in parts of as many, and each part is then added to it. Where a mask leaves few tiles, no part is touched.
#pragma once

#include <algorithm>
#include <atomic>

#include "weft/core/tensor.h"
#include "weft/ops/attention/tile.h"

namespace weft::ops::core {
namespace {

// Row i of `to` (stride elements apart) += factor * row i of `rows`; is_new: `to` holds nothing yet.
template <class T>
[[gnu::always_inline]] inline void put_rows(T* to, int64_t stride, const T* rows, int64_t ld, int64_t width,
                                            int64_t count, T factor, bool is_new) {
  if (!is_new) return add_rows(to, stride, rows, ld, width, count, factor);
  for (int64_t i = 0; i < count; ++i, to += stride, rows += ld)
    for (int64_t c = 0; c < width; ++c) to[c] = factor * rows[c];
}

template <class T>
class QuerySums {
 public:
  QuerySums(const Problem& p, int64_t blocks, int64_t key_blocks)
      : p_(p),
        blocks_(blocks),
        memory_(Tensor::zeros({p.batch, p.heads, larger(blocks, 1)}, kI32, Device::cpu())),
        tiles_(memory_.template mutable_data<int32_t>()) {
    if (key_blocks <= kTilesOfSum) return;
    parts_ = Tensor::empty({p.batch, p.queries, p.heads, p.key_width}, dtype_of<T>(), Device::cpu());
    first_part_ = parts_.template mutable_data<T>();
  }

  // Rows that a tile is added to, or stored in if they hold nothing yet. They are p.heads * p.key_width apart.
  struct Rows {
    T* to;
    bool are_new;
  };
  // For the next tile of a block. Tiles come in turns.
  Rows take(int64_t b, int64_t head, int64_t block) {
    const int32_t tiles = count(b, head, block);
    std::atomic_ref<int32_t>(at(b, head, block)).store(tiles + 1, std::memory_order_relaxed);
    if (!is_in_part(tiles)) return {dq(b, head, block), tiles == 0 && !p_.has_state};
    if (tiles % kTilesOfSum == 0 && tiles > kTilesOfSum) add_part(b, head, block);
    return {part(b, head, block), tiles % kTilesOfSum == 0};
  }
  // Where the next tile goes, if none comes before it.
  const T* likely(int64_t b, int64_t head, int64_t block) {
    return is_in_part(count(b, head, block)) ? part(b, head, block) : dq(b, head, block);
  }
  // After the last tile.
  void finish(int64_t b, int64_t head, int64_t block) {
    const int32_t tiles = count(b, head, block);
    if (tiles == 0 && !p_.has_state)
      for (int64_t i = 0; i < rows_of(block); ++i)
        std::fill_n(dq(b, head, block) + i * p_.heads * p_.key_width, p_.key_width, T(0));
    if (first_part_ && tiles > kTilesOfSum) add_part(b, head, block);
  }

 private:
  int32_t& at(int64_t b, int64_t head, int64_t block) { return tiles_[(b * p_.heads + head) * blocks_ + block]; }
  int32_t count(int64_t b, int64_t head, int64_t block) {
    return std::atomic_ref<int32_t>(at(b, head, block)).load(std::memory_order_relaxed);
  }
  bool is_in_part(int32_t tiles) const { return first_part_ && tiles >= kTilesOfSum; }
  int64_t place(int64_t b, int64_t head, int64_t block) const {
    return ((b * p_.queries + block * kBlock) * p_.heads + head) * p_.key_width;
  }
  int64_t rows_of(int64_t block) const { return smaller(kBlock, p_.queries - block * kBlock); }
  T* dq(int64_t b, int64_t head, int64_t block) { return static_cast<T*>(p_.dq) + place(b, head, block); }
  T* part(int64_t b, int64_t head, int64_t block) { return first_part_ + place(b, head, block); }
  void add_part(int64_t b, int64_t head, int64_t block) {
    const int64_t stride = p_.heads * p_.key_width;
    add_rows(dq(b, head, block), stride, part(b, head, block), stride, p_.key_width, rows_of(block), T(1));
  }

  const Problem& p_;
  int64_t blocks_;
  Tensor memory_, parts_;
  int32_t* tiles_;  // of each block so far
  T* first_part_ = nullptr;
};

}  // namespace
}  // namespace weft::ops::core
