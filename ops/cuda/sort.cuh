// Stable sort of the numbers 0 .. n-1 by a key of each: counting sorts by one byte of the key, lowest first. Equal keys stay in
// order, so sums over the numbers of a key can be made in that order. No floating point, the same result every run.
//   counts[byte][tile] of every tile, their running sum over bytes then tiles, then each tile writes its numbers to its places.
#pragma once

#include <algorithm>
#include <bit>
#include <utility>

#include "ops/cuda/kernel.cuh"

namespace weft::cuda {

namespace sorting {

inline constexpr int kBins = kThreads;  // of a byte; a thread each
inline constexpr int kWarps = kThreads / 32;
inline constexpr int kSteps = 8;  // numbers per thread: a warp takes 32 neighbours at each
inline constexpr int64_t kTile = kThreads * kSteps;

// `order` is what the passes before have made; null at first: the numbers themselves.
template <class Key>
__device__ __forceinline__ int bin_of(const Key& key, const uint32_t* order, int64_t i, int shift) {
  return static_cast<int>(static_cast<uint64_t>(key(order ? order[i] : static_cast<uint32_t>(i))) >> shift & 255u);
}

template <class Key>
__global__ void __launch_bounds__(kThreads)
    count(Key key, const uint32_t* order, int64_t n, int shift, uint32_t* counts) {
  __shared__ uint32_t bins[kBins];
  bins[threadIdx.x] = 0;
  __syncthreads();
  const int64_t first = int64_t{blockIdx.x} * kTile;
  for (int64_t i = first + threadIdx.x; i < n && i < first + kTile; i += kThreads)
    atomicAdd(&bins[bin_of(key, order, i, shift)], uint32_t{1});
  __syncthreads();
  counts[int64_t{threadIdx.x} * gridDim.x + blockIdx.x] = bins[threadIdx.x];
}

// Exclusive running sum in place, by one block of 1024 threads. A template so that a header may hold it.
template <class Count>
__global__ void __launch_bounds__(1024) add_up(Count* counts, int64_t n) {
  constexpr int each = 8;
  __shared__ Count warp_sums[32];
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  Count before = 0;
  for (int64_t first = 0; first < n; first += each * 1024) {
    const int64_t at = first + int64_t{threadIdx.x} * each;
    Count values[each], sum = 0;
#pragma unroll
    for (int k = 0; k < each; ++k) {
      values[k] = at + k < n ? counts[at + k] : Count(0);
      sum += values[k];
    }
    Count upto = sum;
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
      Count other = __shfl_up_sync(0xffffffffu, upto, offset);
      if (lane >= offset) upto += other;
    }
    if (lane == 31) warp_sums[warp] = upto;
    __syncthreads();
    Count base = before, all = 0;
#pragma unroll
    for (int w = 0; w < 32; ++w) {
      if (w == warp) base += all;
      all += warp_sums[w];
    }
    base += upto - sum;
#pragma unroll
    for (int k = 0; k < each; ++k) {
      if (at + k < n) counts[at + k] = base;
      base += values[k];
    }
    before += all;
    __syncthreads();  // the memory is free for the next round
  }
}

template <class Key>
__global__ void __launch_bounds__(kThreads)
    place(Key key, const uint32_t* order, int64_t n, int shift, const uint32_t* places, uint32_t* sorted) {
  __shared__ uint32_t counters[kWarps][kBins];  // seen so far by each warp; then the place of its next number
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  for (int w = 0; w < kWarps; ++w) counters[w][threadIdx.x] = 0;
  __syncthreads();
  const int64_t first = int64_t{blockIdx.x} * kTile + warp * (32 * kSteps) + lane;
  int bins[kSteps];
  uint32_t ranks[kSteps];
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    const int64_t i = first + 32 * s;
    const bool is_there = i < n;
    bins[s] = is_there ? bin_of(key, order, i, shift) : 0;
    unsigned equal = __ballot_sync(0xffffffffu, is_there);  // lanes whose numbers have the same byte
#pragma unroll
    for (int bit = 0; bit < 8; ++bit) {
      const bool is_set = (bins[s] >> bit & 1) != 0;
      const unsigned set = __ballot_sync(0xffffffffu, is_set);
      equal &= is_set ? set : ~set;
    }
    const unsigned before = equal & ((1u << lane) - 1);
    const uint32_t seen = counters[warp][bins[s]];
    ranks[s] = seen + static_cast<uint32_t>(__popc(before));
    __syncwarp();
    if (is_there && before == 0) counters[warp][bins[s]] = seen + static_cast<uint32_t>(__popc(equal));
    __syncwarp();
  }
  __syncthreads();
  uint32_t next = places[int64_t{threadIdx.x} * gridDim.x + blockIdx.x];
  for (int w = 0; w < kWarps; ++w) {
    const uint32_t seen = counters[w][threadIdx.x];
    counters[w][threadIdx.x] = next;
    next += seen;
  }
  __syncthreads();
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    const int64_t i = first + 32 * s;
    if (i < n) sorted[counters[warp][bins[s]] + ranks[s]] = order ? order[i] : static_cast<uint32_t>(i);
  }
}

}  // namespace sorting

// Sorts by bits [0, bits) of `key`, a functor uint32_t -> unsigned integer on the device. `order` is undefined for a first sort, or
// the result of one by a lower part of a key. [n] i32, to be read as uint32_t; 0 < n < 2^32.
template <class Key>
Tensor sorted_by(std::string_view op, Key key, int bits, int64_t n, Device device, Tensor order = {}) {
  using namespace sorting;
  const int64_t tiles = (n + kTile - 1) / kTile;
  cudaStream_t s = stream(device.index);
  auto blocks = static_cast<unsigned>(tiles);
  Tensor counts = Tensor::empty({kBins, tiles}, kI32, device), to = Tensor::empty({n}, kI32, device), spare;
  auto numbers = [](Tensor& t) { return static_cast<uint32_t*>(t.defined() ? t.mutable_raw() : nullptr); };
  // A key of no bits still makes one pass, which writes the numbers in order.
  for (int shift = 0; shift == 0 || shift < bits; shift += 8) {
    if (!to.defined()) to = spare.defined() ? std::move(spare) : Tensor::empty({n}, kI32, device);
    uint32_t *from = numbers(order), *places = numbers(counts);
    launch(op, count<Key>, blocks, kThreads, 0, s, key, from, n, shift, places);
    launch(op, add_up<uint32_t>, 1, 1024, 0, s, places, kBins * tiles);
    launch(op, place<Key>, blocks, kThreads, 0, s, key, from, n, shift, places, numbers(to));
    spare = std::move(order);
    order = std::move(to);
    to = Tensor();
  }
  return order;
}

}  // namespace weft::cuda
