// Products of a chunk under its decays D(r, i) = a_{i+1} .. a_r, for i <= r. Of any two rows one level has blocks of h = 1, 2, .. 32 rows in
// which they are neighbours, i in the left one of two and r in the right one. There D is before(r) after(i): the products of decays
// from the start of r's block to r, and behind i to the end of i's block. One matrix product could not do that without a division: there is
// one for each level.
#pragma once

#include "ops/cuda/recurrence/chunk.cuh"

namespace weft::cuda::recurrence {

// Whether rows i < r are neighbours in blocks of h rows; h = 0: whether they are the same.
__device__ __forceinline__ bool meet(int r, int i, int h) {
  const int block = h == 0 ? -1 : -h;  // bits that are the same in rows of a block
  const int left = h == 0 ? r : (r & h) != 0 ? (r & block) - h : -1;
  return left == (i & block);
}
// The rows that meet the 16 of this warp from before, or from behind; wider below 16.
__device__ __forceinline__ void rows_met(int h, bool is_from_before, int& first, int& last) {
  const int row = 16 * warp_of();
  first = row, last = row + 16;
  if (h < 16) return;
  const bool is_right = (row & h) != 0;
  first = (row & ~(2 * h - 1)) + (is_from_before ? 0 : h);
  last = is_right == is_from_before ? first + h : first;
}

// before and after of blocks of one row, of channels [c0, c0 + kStrip) below `width`. A thread loads eight before it uses the first.
template <class T, class E>
__device__ __forceinline__ void load_decays(const Chunk<T, E>& chunk, int64_t c0, int64_t width) {
  constexpr int kBatch = 8, kWarps = kBlock / 32;
  static_assert(kStrip == 32 && kRows % (kBatch * kWarps) == 0);
  __syncthreads();
  const int c = lane_of();
  const bool is_channel = c0 + c < width;
#pragma unroll 1
  for (int first = made_here(warp_of()); first < kRows; first += kBatch * kWarps) {
    T g[kBatch];
    auto load = [&]<class G>() {
#pragma unroll
      for (int n = 0; n < kBatch; ++n) g[n] = chunk.template log_decay<G>(first + n * kWarps, c0 + c, is_channel);
    };
    if (chunk.decays.is_bf16) load.template operator()<BFloat16>();
    else load.template operator()<T>();
#pragma unroll
    for (int n = 0; n < kBatch; ++n) {
      const int r = first + n * kWarps;
      chunk.s.before[r][c] = is_channel ? chunk.alpha(r, g[n]) : T(1);
      chunk.s.after[r][c] = 1;
    }
  }
  __syncthreads();
}
// Those of blocks of 2 h rows from those of h rows.
template <class T>
__device__ __forceinline__ void join_blocks(Shared<T>& s, int h, int channels) {
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < kRows * channels; i += kBlock) {
    const int r = i / channels, c = i % channels;
    if (!(r & h)) s.after[r][c] *= s.before[(r | h) | (h - 1)][c];
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < kRows * channels; i += kBlock) {
    const int r = i / channels, c = i % channels;
    if (r & h) s.before[r][c] *= s.before[((r & ~h) | (h - 1))][c];
  }
  __syncthreads();
}

// Of decays that are one number per token, the factors of every level, which stand in the other channels of `before`; before and after of
// the whole chunk are left in channel 0.
template <class T, class E>
__device__ __forceinline__ void load_factors(const Chunk<T, E>& chunk) {
  const int r = static_cast<int>(threadIdx.x);
  __syncthreads();
  if (r < kRows) {
    const T g =
        chunk.decays.is_bf16 ? chunk.template log_decay<BFloat16>(r, 0, true) : chunk.template log_decay<T>(r, 0, true);
    chunk.s.before[r][0] = chunk.alpha(r, g), chunk.s.after[r][0] = 1;
  }
  __syncthreads();
  for (int level = 0, h = 1; level < kLevels; ++level, h *= 2) {
    if (r < kRows) chunk.s.before[r][1 + level] = r & h ? chunk.s.before[r][0] : chunk.s.after[r][0];
    join_blocks(chunk.s, h, 1);
  }
}
template <class T, class E>
__device__ __forceinline__ T relative(const Chunk<T, E>& chunk, int r, int i) {
  if (r == i || chunk.w.p.decay != Decay::scalar) return 1;
  const int level = 31 - __clz(r ^ i);
  return chunk.s.before[r][1 + level] * chunk.s.before[i][1 + level];
}

// tile(r, i) = sum over c < width of x(r, c) y(i, c) D(r, i, c) for i <= r, or i < r if kStrict; else 0.
// has_channels: D is a number per channel c. Otherwise load_factors() has been called if decays are one number per token.
// Operands::split is for x and y that are elements of tensors: they are rounded only where they are multiplied by decays.
template <class A, bool kStrict, Operands kOperands = Operands::rounded, class X, class Y>
__device__ __forceinline__ void scores(const ChunkOf<A>& chunk, Tile<A>& tile, int64_t width, bool has_channels, X&& x,
                                       Y&& y) {
  using T = typename A::T;
  static_assert(kStrip <= kSplitDepth);
  Strips<T>& strips = chunk.s.strips;
  tile.clear();
  if (!has_channels) {
    multiply<A, Along::depth, Along::depth>(tile, strips, kRows, width, x, y);
    tile.each([&](int r, int i, T& p) { p = i < r || (!kStrict && i == r) ? p * relative(chunk, r, i) : T(0); });
    return;
  }
  for (int64_t c0 = 0; c0 < width; c0 += kStrip) {
    const int count = static_cast<int>(smaller(kStrip, width - c0)), steps = in_steps(count);
    load_decays(chunk, c0, width);
    for (int h = kStrict ? 1 : 0; h < kRows; h = h ? 2 * h : 1) {
      stage<A, Along::depth, kOperands>(strip<A>(strips, 0), kRows, steps, [&](int r, int c, bool is_wanted) {
        is_wanted = is_wanted && c < count && (h == 0 || (r & h) != 0);
        const T value = x(r, c0 + c, is_wanted), factor = h ? chunk.s.before[r][c] : T(1);
        return is_wanted ? value * factor : T(0);
      });
      stage<A, Along::depth, kOperands>(strip<A>(strips, 1), kRows, steps, [&](int i, int c, bool is_wanted) {
        is_wanted = is_wanted && c < count && (i & h) == 0;
        const T value = y(i, c0 + c, is_wanted), factor = h ? chunk.s.after[i][c] : T(1);
        return is_wanted ? value * factor : T(0);
      });
      __syncthreads();
      int first, last;
      rows_met(h, true, first, last);
      Tile<A> part;
      part.clear();
      multiply_strips<A, kOperands>(part, strip<A>(strips, 0), strip<A>(strips, 1), {first / 8, last / 8, 0, steps});
      tile.add(part, [&](int r, int i, T p) { return meet(r, i, h) ? p : T(0); });
      if (h) join_blocks(chunk.s, h, kStrip);
      else __syncthreads();
    }
  }
}

// tile(r, c) += sum over i <= r of m(r, i) x(i, c0 + c) D(r, i, c0 + c), of at most kStrip columns if has_channels; otherwise m has D in it.
// kTransposed: tile(i, c) += sum over r >= i of m(r, i) x(r, c0 + c) D(r, i, c0 + c).
template <class A, bool kTransposed, class X>
__device__ __forceinline__ void apply(const ChunkOf<A>& chunk, Tile<A>& tile, int64_t c0, int64_t columns,
                                      bool has_channels, const typename A::T* m, X&& x) {
  using T = typename A::T;
  Strips<T>& strips = chunk.s.strips;
  auto at = [&](int own, int other, bool is_wanted) {
    return load_if(m + (kTransposed ? other * kRows + own : own * kRows + other), is_wanted);
  };
  constexpr Along kAlong = kTransposed ? Along::rows : Along::depth;
  if (!has_channels)
    return multiply<A, kAlong, Along::rows>(
        tile, strips, columns, chunk.count,
        [&](int r, int64_t i, bool is_wanted) { return at(r, static_cast<int>(i), is_wanted); },
        [&](int c, int64_t i, bool is_wanted) { return x(static_cast<int>(i), c0 + c, is_wanted); });
  load_decays(chunk, c0, c0 + columns);
  for (int h = 0; h < kRows; h = h ? 2 * h : 1) {
    stage<A, kAlong>(strip<A>(strips, 0), kRows, kRows, [&](int own, int other, bool is_wanted) {
      return at(own, other, is_wanted && (kTransposed ? meet(other, own, h) : meet(own, other, h)));
    });
    stage<A, Along::rows>(strip<A>(strips, 1), kStrip, kRows, [&](int c, int other, bool is_wanted) {
      is_wanted = is_wanted && c < columns && (h == 0 || ((other & h) != 0) == kTransposed);
      const T value = x(other, c0 + c, is_wanted);
      const T factor = h == 0 ? T(1) : kTransposed ? chunk.s.before[other][c] : chunk.s.after[other][c];
      return is_wanted ? value * factor : T(0);
    });
    __syncthreads();
    int first, last;
    rows_met(h, !kTransposed, first, last);
    Tile<A> part;
    part.clear();
    A::multiply_add(part.at, strip<A>(strips, 0), strip<A>(strips, 1), {0, kStrip / 8, first, last});
    tile.add(part, [&](int r, int c, T p) {
      if (c >= kStrip || h == 0) return p;
      return p * (kTransposed ? chunk.s.after[r][c] : chunk.s.before[r][c]);
    });
    if (h) join_blocks(chunk.s, h, kStrip);
    else __syncthreads();
  }
}

}  // namespace weft::cuda::recurrence
