// Tiles for Hopper's warpgroups: blocks of two consuming warpgroups, each with 64 rows of the block's own side, and a warp that has the
// copy engine bring tiles of the walked side into a ring of stages. Registers move from the producer's warpgroup to the consumers.
// Who has which element of a product: forward_rows.cuh, with M = 1.
#pragma once

#include "ops/cuda/attention/problem.cuh"
#include "ops/cuda/ptx.cuh"
#include "ops/cuda/wgmma.cuh"

namespace weft::cuda::attention::hopper {

inline constexpr int kOwn = 128;        // rows of the block's own side
inline constexpr int kConsumers = 256;  // threads; the producer's warpgroup follows
inline constexpr int kBlock = kConsumers + 128;
inline constexpr int kConsumingWarps = kConsumers / 32;
inline constexpr int kConsumerRegisters = 232, kProducerRegisters = 40;  // of 384 x 168

// The same in every lane, and known to be.
__device__ __forceinline__ int warp_of_block() {
  return __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 32, 0);
}
__device__ __forceinline__ bool is_first_lane() { return threadIdx.x % 32 == 0; }

// kRows tokens x kWidth channels in shared memory: 64 channels of all rows, then the next 64, as the copy engine leaves them.
template <int kRows, int kWidth>
struct Panel {
  static_assert(kRows % 8 == 0 && kWidth % 64 == 0);
  static constexpr int kBytes = kRows * kWidth * 2;
  unsigned char* at;

  // Number i of a row of panels.
  __device__ __forceinline__ Panel operator[](int i) const { return {at + i * kBytes}; }
  // One thread asks. Tokens [first, first + kRows) of one head.
  __device__ __forceinline__ void copy(const TileMap& map, int64_t batch, int head, int64_t first,
                                       SharedBarrier& barrier) const {
#pragma unroll
    for (int c = 0; c < kWidth; c += 64)
      copy_tile(at + c * kRows * 2, map, c, head, static_cast<int>(first), static_cast<int>(batch), barrier);
  }
  // Rows from `row` on, summed over channels [16 step, 16 step + 16).
  __device__ __forceinline__ uint64_t by_channel(int row, int step) const {
    return wgmma_operand(shared_address(at) + static_cast<uint32_t>(step / 4 * kRows * 128 + row * 128 + step % 4 * 32),
                         16, 1024);
  }
  // All channels, summed over tokens [row, row + 16).
  __device__ __forceinline__ uint64_t by_token(int row) const {
    return wgmma_operand(shared_address(at) + static_cast<uint32_t>(row * 128), kRows * 128, 1024);
  }
};

// d[64, 8 N] = (own rows from `row` on) . (walked rows); the caller fences before and commits after.
template <int N, int kWidth, int kOwnRows, int kWalkedRows>
__device__ __forceinline__ void product(float (&d)[N][4], const Panel<kOwnRows, kWidth>& own, int row,
                                        const Panel<kWalkedRows, kWidth>& walked) {
  static_assert(8 * N == kWalkedRows);
#pragma unroll
  for (int step = 0; step < kWidth / 16; ++step)
    wgmma(d, own.by_channel(row, step), walked.by_channel(0, step), step > 0);
}

// Weights of a warpgroup's rows as first operands: 16 walked tokens each.
template <int N>
__device__ __forceinline__ void pack(uint32_t (&to)[N / 2][4], const float (&weights)[N][4]) {
#pragma unroll
  for (int n = 0; n < N / 2; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      to[n][i] = pack_bf16(weights[2 * n + i / 2][i % 2 * 2], weights[2 * n + i / 2][i % 2 * 2 + 1]);
}

// acc += (weights of own rows and walked tokens) x (walked rows); fence and commit as above.
template <int N, int C, int kWidth, int kRows>
__device__ __forceinline__ void accumulate(float (&acc)[C][4], const uint32_t (&weights)[N][4],
                                           const Panel<kRows, kWidth>& walked) {
  static_assert(16 * N == kRows && 8 * C == kWidth);
#pragma unroll
  for (int n = 0; n < N; ++n) wgmma_rows(acc, weights[n], walked.by_token(16 * n));
}

// A place in a ring of stages and the parity of its use.
template <int kStages>
struct Turn {
  int stage = 0;
  unsigned parity = 0;

  __device__ __forceinline__ void advance() {
    if (++stage == kStages) stage = 0, parity ^= 1;
  }
};

// One number per token of a walked tile, by a warp; zeros outside and without `data`.
template <class T, int kRows>
__device__ __forceinline__ void load_numbers(T (&to)[kRows], const T* data, int64_t stride, int64_t first, int64_t n) {
#pragma unroll
  for (int i = static_cast<int>(threadIdx.x) % 32; i < kRows; i += 32)
    to[i] = data && first + i < n ? data[(first + i) * stride] : T(0);
}

template <int kRows>
struct TileTokens {
  int32_t position[kRows], document[kRows];

  __device__ __forceinline__ void load(const Side& side, int64_t b, int64_t first) {
    const TokenView& v = side.tokens;
    load_numbers(position, v.position + b * v.batch_stride, v.stride, first, side.count);
    load_numbers(document, v.document ? v.document + b * v.document_batch_stride : nullptr, v.document_stride, first,
                 side.count);
  }
  __device__ __forceinline__ Token<int32_t> at(int i) const { return {position[i], document[i]}; }
};

// The block's shared memory from the next multiple of 1024 on, handed out from the front.
class SharedMemory {
 public:
  __device__ __forceinline__ SharedMemory()
      : next_(dynamic_shared() + (1024 - shared_address(dynamic_shared()) % 1024) % 1024) {}

  // The first of `count` panels, one behind the other.
  template <class P>
  __device__ __forceinline__ P panels(int count) {
    unsigned char* at = next_;
    next_ += count * P::kBytes;
    return {at};
  }
  template <class T>
  __device__ __forceinline__ T& rest() const {
    return *reinterpret_cast<T*>(next_);
  }

 private:
  unsigned char* next_;
};
inline constexpr size_t kAlignmentBytes = 1024;

// A kernel's operands as the copy engine sees them.
struct Maps {
  TileMap q, k, v, dout;
};

}  // namespace weft::cuda::attention::hopper
