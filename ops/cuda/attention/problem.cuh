// What every attention kernel is given, and the walk over the tiles that its mask leaves. A kernel owns a tile of one side
// (queries, or keys) and walks tiles of the other. Ranges of positions and documents of every tile are joined from data
// beforehand, so that tiles without a visible pair are neither loaded nor multiplied.
#pragma once

#include "ops/cuda/attention/kernels.h"
#include "ops/cuda/kernel.cuh"
#include "weft/ops/attention/tokens.h"

namespace weft::cuda::attention {

using ops::Cover;
using ops::Token;
using ops::TokenRange;
using ops::core::Operand;
using ops::core::Problem;
using ops::core::TokenView;

// One side of the problem, cut into tiles.
struct Side {
  TokenView tokens;
  int64_t count = 0;                   // tokens of a row
  int step = 1, tiles = 0;             // tokens of a tile, tiles of a row
  const TokenRange* ranges = nullptr;  // [B, tiles]
};

struct Work {
  Problem p;
  Side queries, keys;
  bool is_wide = false;  // rows of all operands can be read 16 bytes at a time
};

// Rows start at multiples of 16 bytes and are whole multiples of that; true for an operand that is not there.
bool are_rows_wide(const Operand& x, int64_t width);

inline cudaStream_t stream_of(const Problem& p) { return stream(p.device.index); }

// A Work and the memory of its ranges, which must live until the kernels have been asked for.
struct Prepared {
  Work work;
  Tensor memory;

  Prepared(const Problem& p, int query_step, int key_step);
};

// A tile of the walked side, for one query head.
struct Tile {
  int head = 0, index = 0;
  bool is_full = false;  // every pair counts: no test per pair
};

// Yields the tiles of heads [head, head_end) that have visible pairs with the block's own tile, head after head, in order. Every
// warp walks for itself, 32 tiles at a look; all lanes must call next() together.
template <class Mask, bool kOwnsQueries>
class Walk {
 public:
  __device__ __forceinline__ Walk(const Work& work, const Mask& mask, int b, int own_tile, int head, int head_end)
      : work_(work), mask_(mask), b_(b), own_tile_(own_tile), head_(head), head_end_(head_end) {}

  __device__ __forceinline__ bool next(Tile& tile) {
    while (visible_ == 0) {
      if (head_ >= head_end_) return false;
      begin_ += 32;
      if (begin_ >= walked().tiles) {
        if (++head_ >= head_end_ || walked().tiles == 0) return false;
        begin_ = 0;
      }
      look();
    }
    int bit = __ffs(static_cast<int>(visible_)) - 1;
    visible_ &= visible_ - 1;
    tile = {head_, begin_ + bit, (full_ >> bit & 1) != 0};
    return true;
  }

 private:
  __device__ __forceinline__ const Side& walked() const { return kOwnsQueries ? work_.keys : work_.queries; }

  // Ranges are read anew each time: registers are dearer.
  __device__ __forceinline__ void look() {
    const Side &own = kOwnsQueries ? work_.queries : work_.keys, &other = walked();
    int i = begin_ + static_cast<int>(threadIdx.x % 32);
    Cover cover = Cover::empty;
    if (i < other.tiles) {
      TokenRange mine = own.ranges[int64_t{b_} * own.tiles + own_tile_],
                 its = other.ranges[int64_t{b_} * other.tiles + i];
      int64_t row = work_.p.first_row + b_;
      cover = kOwnsQueries ? mask_.cover(row, head_, mine, its) : mask_.cover(row, head_, its, mine);
    }
    visible_ = __ballot_sync(0xffffffffu, cover != Cover::empty);
    full_ = __ballot_sync(0xffffffffu, cover == Cover::full && (int64_t{i} + 1) * other.step <= other.count);
  }

  const Work& work_;
  const Mask& mask_;
  int b_, own_tile_, head_, head_end_;
  int begin_ = -32;
  unsigned visible_ = 0, full_ = 0;
};

}  // namespace weft::cuda::attention
