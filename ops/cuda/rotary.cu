// Rotary position embedding (Su et al., 2104.09864): pair (a, b) of a head becomes (a cos - b sin, b cos + a sin).
// x [tokens, heads, K], cos and sin [tokens, rotated / 2] in f32. The backward is the rotation by the negative angle.
// A block takes some tokens, a thread a few pairs or a few of the channels that are only copied.
#include <algorithm>

#include "ops/cuda/rotary.h"
#include "ops/cuda/rows.cuh"

namespace weft::cuda {

namespace {

// kPairs pairs and kCopied channels at a time; kPairs of one head are neighbours in memory, in both orders.
template <class T, int kPairs, int kCopied, bool is_interleaved>
struct Rotation {
  using C = Compute<T>;
  static constexpr int pairs = kPairs, copied = kCopied;

  static __device__ __forceinline__ void rotate(C& a, C& b, C cos, C sin) {
    const C turned = a * cos - b * sin;
    b = b * cos + a * sin;
    a = turned;
  }

  // Pairs [m, m + kPairs) of one head.
  static __device__ __forceinline__ void turn(const T* x, T* y, const float* cos, const float* sin, int64_t m,
                                              int64_t half, C direction) {
    C c[kPairs], s[kPairs], a[kPairs], b[kPairs];
    load_group(cos + m, c);
    load_group(sin + m, s);
    if constexpr (is_interleaved && kPairs > 1) {
      C both[2 * kPairs];
      load_group(x + 2 * m, both);
#pragma unroll
      for (int k = 0; k < kPairs; ++k) rotate(both[2 * k], both[2 * k + 1], c[k], s[k] * direction);
      store_group(y + 2 * m, both);
    } else {
      const int64_t at_a = is_interleaved ? 2 * m : m, at_b = is_interleaved ? 2 * m + 1 : m + half;
      load_group(x + at_a, a);
      load_group(x + at_b, b);
#pragma unroll
      for (int k = 0; k < kPairs; ++k) rotate(a[k], b[k], c[k], s[k] * direction);
      store_group(y + at_a, a);
      store_group(y + at_b, b);
    }
  }
};

template <class R, class T>
__global__ void rotate_heads(cpu::RotaryArgs<T> args, int64_t tokens, int tokens_of_block) {
  const int64_t width = args.x_rows.width, half = args.rotated / 2;
  // Of one head, and of one token. A token has fewer than 2^31 channels.
  const int turns = static_cast<int>(half / R::pairs),
            items = turns + static_cast<int>((width - args.rotated) / R::copied);
  const int of_token = items * static_cast<int>(args.heads);
  for (int64_t first = int64_t{blockIdx.x} * tokens_of_block; first < tokens;
       first += int64_t{gridDim.x} * tokens_of_block) {
    const int here = static_cast<int>(tokens - first < tokens_of_block ? tokens - first : tokens_of_block) * of_token;
    for (int i = static_cast<int>(threadIdx.x); i < here; i += static_cast<int>(blockDim.x)) {
      const int64_t head = i / items, token = first + i / of_token;  // heads of the block's first token come first
      const int item = i % items;
      const int64_t row = first * args.heads + head;
      const T* x = args.x + offset_of(args.x_rows, row);
      T* y = args.y + row * width;
      if (item < turns) {
        R::turn(x, y, args.cos + token * half, args.sin + token * half, int64_t{item} * R::pairs, half,
                static_cast<Compute<T>>(args.direction));
      } else {
        const int64_t channel = args.rotated + int64_t{item - turns} * R::copied;
        store_one(y + channel, *reinterpret_cast<const Group<T, R::copied>*>(x + channel));
      }
    }
  }
}

template <class R, class T>
void run(const cpu::RotaryArgs<T>& args, Device device) {
  if (args.x_rows.count == 0) return;
  const int64_t tokens = args.x_rows.count / args.heads;
  const int64_t of_token = args.heads * (args.rotated / 2 / R::pairs + (args.x_rows.width - args.rotated) / R::copied);
  const int tokens_of_block = static_cast<int>(std::max<int64_t>(kThreads / of_token, 1));
  const int64_t work = tokens_of_block * of_token;
  const auto threads = static_cast<unsigned>(std::min<int64_t>((work + 31) / 32 * 32, kThreads));
  launch("rotary", rotate_heads<R, T>, grid_of(tokens, tokens_of_block), threads, 0, stream(device.index), args, tokens,
         tokens_of_block);
}

template <bool is_interleaved, class T>
void run_for(const cpu::RotaryArgs<T>& args, Device device) {
  if constexpr (!std::is_same_v<T, double>) {
    constexpr int kPairs = is_interleaved ? kWide<T> / 2 : kWide<T>;
    bool wide =
        is_wide(args.x, args.x_rows) && are_aligned(args.y, args.cos, args.sin) && args.rotated / 2 % kPairs == 0;
    if (wide) return run<Rotation<T, kPairs, kWide<T>, is_interleaved>>(args, device);
  }
  run<Rotation<T, 1, 1, is_interleaved>>(args, device);
}

template <class P>
__global__ void fill_table(const P* positions, const double* frequencies, int64_t pairs, int64_t n, double amplitude,
                           float* cos, float* sin) {
  for (int64_t i = thread_index(); i < n; i += thread_count()) {
    const double angle = static_cast<double>(positions[i / pairs]) * frequencies[i % pairs];
    cos[i] = static_cast<float>(amplitude * math::cos(angle));
    sin[i] = static_cast<float>(amplitude * math::sin(angle));
  }
}

}  // namespace

template <class T>
void RotaryKernels<T>::half(const cpu::RotaryArgs<T>& args, Device device) {
  run_for<false>(args, device);
}
template <class T>
void RotaryKernels<T>::interleaved(const cpu::RotaryArgs<T>& args, Device device) {
  run_for<true>(args, device);
}

void rotary_table(Tensor& cos, Tensor& sin, const Tensor& positions, const Tensor& frequencies, double amplitude) {
  const int64_t n = cos.num_elements(), pairs = frequencies.num_elements();
  if (n == 0) return;
  with_type<int32_t, int64_t>(positions.dtype(), "rotary_table", [&](auto tag) {
    using P = typename decltype(tag)::type;
    launch("rotary_table", fill_table<P>, grid_of(n), kThreads, 0, stream_of(cos), positions.data<P>(),
           frequencies.data<double>(), pairs, n, amplitude, cos.mutable_data<float>(), sin.mutable_data<float>());
  });
}

template struct RotaryKernels<float>;
template struct RotaryKernels<BFloat16>;
template struct RotaryKernels<double>;

}  // namespace weft::cuda
