// Forward by chunks (Yang et al., 2406.06484, the schedule for parallel chunks), with the names of chunk.cuh. Of every chunk by itself:
//   P(r, i) = scale q_r (D k_i), i <= r;   delta rule: M(r, i) = k_r (D k_i), i < r,  L = (I + M Diag(beta))^-1,
//   keys_seen = L (before k),  errors = L v
// Then chunk after chunk, in parts of the value columns, with the state S:
//   delta rule: errors -= keys_seen S;   S' = total S + (after k)^T u
// Then every chunk by itself:  O = (scale before q) S + P u.  With decays of value channels before, after and D stand at the values.
// Errors may be small differences of large numbers, v and what the state answers. So the operands of M, keys_seen and errors are split
// (product.cuh): rounded to bf16 they would lose what is to be written.
#pragma once

#include <vector>

#include "ops/cuda/recurrence/decays.cuh"
#include "ops/cuda/recurrence/finish.cuh"

namespace weft::cuda::recurrence {

// (I + M Diag(beta))^-1 in shared memory, by blocks: of [[A, 0], [B, D]] it is [[A^-1, 0], [-D^-1 B A^-1, D^-1]]. Above the diagonal of the
// inverse stands B A^-1 meanwhile.
template <class T, class E>
__device__ __forceinline__ void invert(const Chunk<T, E>& chunk, const T* strict) {
  T(&m)[kRows][kDepth + 1] = chunk.s.strips.at[0];
  T(&inverse)[kRows][kDepth + 1] = chunk.s.strips.at[1];
  const int thread = static_cast<int>(threadIdx.x);
  constexpr int kBatch = 8, kStep = kBlock / kRows;  // a thread loads eight, so many rows apart, before it stores one
  const int c = thread % kRows;
  const T beta = chunk.s.beta[c];
#pragma unroll 1
  for (int first = made_here(thread / kRows); first < kRows; first += kBatch * kStep) {
    T x[kBatch];
#pragma unroll
    for (int n = 0; n < kBatch; ++n) {
      const int r = first + n * kStep;
      x[n] = load_if(strict + (r * kRows + c), c < r && beta != 0);
    }
#pragma unroll
    for (int n = 0; n < kBatch; ++n) {
      const int r = first + n * kStep;
      m[r][c] = c < r && beta != 0 ? x[n] * beta : T(0);
      inverse[r][c] = r == c ? 1 : 0;
    }
  }
  __syncthreads();
  for (int h = 1; h < kRows; h *= 2) {
    // Element (r, c) of the lower block of a pair of blocks, counted over all pairs.
    auto each = [&](auto&& f) {
      for (int i = thread; i < kRows / 2 * h; i += kBlock) {
        const int pair = i / (h * h), in_pair = i % (h * h);
        f(pair * 2 * h, in_pair / h, in_pair % h);
      }
      __syncthreads();
    };
    each([&](int at, int r, int c) {
      T sum = 0;
      for (int k = c; k < h; ++k) sum += m[at + h + r][at + k] * inverse[at + k][at + c];
      inverse[at + r][at + h + c] = sum;
    });
    each([&](int at, int r, int c) {
      T sum = 0;
      for (int k = 0; k <= r; ++k) sum += inverse[at + h + r][at + h + k] * inverse[at + k][at + h + c];
      inverse[at + h + r][at + c] = -sum;
    });
    each([&](int at, int r, int c) { inverse[at + r][at + h + c] = 0; });
  }
}

// What does not depend on states. Blocks are [B, H, chunks].
template <class A>
__global__ void __launch_bounds__(kBlock, kBlocks<typename A::T>)
    enter_chunks(const __grid_constant__ Work<typename A::T> w) {
  using T = typename A::T;
  const Place place = place_of(w, 1);
  ChunkOf<A> chunk(w, shared_of<T>(), place.b, place.h, place.n);
  const int thread = static_cast<int>(threadIdx.x);
  const bool is_scalar = w.p.decay == Decay::scalar;
  for (int64_t c0 = 0; c0 < w.decay_width; c0 += kStrip) {
    const int channels = static_cast<int>(smaller(kStrip, w.decay_width - c0));
    if (is_scalar) {
      load_factors(chunk);
    } else {
      load_decays(chunk, c0, w.decay_width);
      for (int h = 1; h < kRows; h *= 2) join_blocks(chunk.s, h, kStrip);
    }
    for (int i = thread; i < chunk.count * channels; i += kBlock) {
      const int r = i / channels, c = i % channels;
      const int64_t at = chunk.token(r) * w.decay_width + c0 + c;
      w.before[at] = chunk.s.before[r][c], w.after[at] = chunk.s.after[r][c];
    }
    for (int c = thread; c < channels; c += kBlock)
      w.total[(chunk.head * w.chunks + chunk.n) * w.decay_width + c0 + c] = chunk.s.before[kRows - 1][c];
  }
  auto put = [&](T* all, Tile<A>& tile) {
    T* to = chunk.matrix(all);
    tile.each([&](int r, int i, T x) { to[r * kRows + i] = x; });
  };
  auto key = [&](int r, int64_t c, bool is_wanted) { return chunk.k(r, c, is_wanted); };
  Tile<A> tile;
  scores<A, false>(
      chunk, tile, w.p.key_width, w.p.decay == Decay::key,
      [&](int r, int64_t c, bool is_wanted) { return chunk.q(r, c, is_wanted); }, key);
  put(w.pairs, tile);
  if (!w.is_delta) return;
  scores<A, true, Operands::split>(chunk, tile, w.p.key_width, w.p.decay == Decay::key, key, key);
  put(w.strict, tile);
  __syncthreads();
  invert(chunk, chunk.matrix(w.strict));
  T* inverse = chunk.matrix(w.inverse);
  for (int i = thread; i < kRows * kRows; i += kBlock) inverse[i] = chunk.s.strips.at[1][i / kRows][i % kRows];
  __syncthreads();
  auto of_inverse = [&](T* to, int64_t width, auto&& x) {
    for (int64_t c0 = 0; c0 < width; c0 += kColumns) {
      const int64_t columns = smaller(kColumns, width - c0);
      tile.clear();
      multiply<A, Along::depth, Along::rows, Operands::split>(
          tile, chunk.s.strips, columns, chunk.count,
          [&](int r, int64_t i, bool is_wanted) { return load_if(inverse + (r * kRows + i), is_wanted); },
          [&](int c, int64_t i, bool is_wanted) { return x(static_cast<int>(i), c0 + c, is_wanted); });
      tile.each([&](int r, int c, T sum) {
        if (r < chunk.count && c < columns) to[chunk.token(r) * width + c0 + c] = sum;
      });
    }
  };
  of_inverse(w.keys_seen, w.p.key_width, [&](int i, int64_t c, bool is_wanted) {
    return chunk.k(i, c, is_wanted) * chunk.of_keys(w.before, i, c, is_wanted);
  });
  of_inverse(w.errors, w.p.value_width, [&](int i, int64_t c, bool is_wanted) { return chunk.v(i, c, is_wanted); });
}

// A block's value columns [first, first + count) of the states of one head; blocks are [B, H, parts].
struct StateColumns {
  int64_t head;
  int first, count;
};
template <class T>
__device__ __forceinline__ StateColumns state_columns(const Work<T>& w) {
  const auto width = static_cast<unsigned>(w.p.value_width), step = static_cast<unsigned>(w.state_step);
  const unsigned parts = (width + step - 1) / step, first = blockIdx.x % parts * step;
  return {blockIdx.x / parts, static_cast<int>(first), static_cast<int>(smaller(step, width - first))};
}
// Those columns of one state, which may be null for zeros, to another.
template <class T>
__device__ __forceinline__ void copy_state(const Work<T>& w, const StateColumns& at, T* to, const T* from) {
  constexpr int kNear = 16, kFar = kBlock / kNear, kBatch = 8;
  const int64_t K = w.p.key_width, V = w.p.value_width;
  const int far = static_cast<int>(threadIdx.x) / kNear, near = static_cast<int>(threadIdx.x) % kNear;
#pragma unroll 1
  for (int j = near; j < at.count; j += kNear)
#pragma unroll 1
    for (int64_t c = far; c < K; c += kBatch * kFar) {
      T x[kBatch];
      const int64_t first = c * V + at.first + j;
#pragma unroll
      for (int n = 0; n < kBatch; ++n) x[n] = load_if(from + (first + n * kFar * V), from && c + n * kFar < K);
#pragma unroll
      for (int n = 0; n < kBatch; ++n)
        if (c + n * kFar < K) to[first + n * kFar * V] = x[n];
    }
}

// Rows from k0 of the next state: what the decays of the chunk leave of this one, and the tile.
template <class A>
__device__ __forceinline__ void give_state(const ChunkOf<A>& chunk, Tile<A>& tile, const StateColumns& at, int64_t k0,
                                           typename A::T* next, const typename A::T* state) {
  using T = typename A::T;
  const int64_t K = chunk.w.p.key_width, V = chunk.w.p.value_width, v0 = at.first;
  tile.each(
      at.count,
      [&](int c, int j, T& sum) {
        const bool is_there = k0 + c < K && j < at.count;
        sum += chunk.total(k0 + c, v0 + j, is_there) * load_if(state + ((k0 + c) * V + v0 + j), is_there);
      },
      [&](int c, int j, T sum) {
        if (k0 + c < K && j < at.count) next[(k0 + c) * V + v0 + j] = sum;
      });
}

// States before every chunk, and behind the last one.
template <class A>
__global__ void __launch_bounds__(kBlock, kBlocks<typename A::T>)
    advance_states(const __grid_constant__ Work<typename A::T> w) {
  using T = typename A::T;
  const int64_t K = w.p.key_width, V = w.p.value_width;
  const StateColumns at = state_columns(w);
  const int64_t v0 = at.first;
  T* states = w.states + at.head * (w.chunks + 1) * K * V;
  copy_state(w, at, states, w.p.state ? static_cast<const T*>(w.p.state) + at.head * K * V : nullptr);
  Tile<A> tile;
  for (int n = 0; n < w.chunks; ++n) {
    const int head = made_here(static_cast<int>(at.head)), heads = static_cast<int>(w.p.heads);
    ChunkOf<A> chunk(w, shared_of<T>(), head / heads, head % heads, n);
    const T* state = chunk.state(w.states);
    T* next = chunk.state(w.states, 1);
    if (w.is_delta) {
      tile.clear();
      multiply<A, Along::depth, Along::rows, Operands::split>(
          tile, chunk.s.strips, at.count, K,
          [&](int r, int64_t c, bool is_wanted) { return chunk.kept(w.keys_seen, K, r, c, is_wanted); },
          [&](int j, int64_t c, bool is_wanted) { return load_if(state + (c * V + v0 + j), is_wanted); });
      tile.each(
          at.count, [&](int r, int j, T& x) { x = chunk.kept(w.errors, V, r, v0 + j, j < at.count) - x; },
          [&](int r, int j, T x) {
            if (r < chunk.count && j < at.count) w.errors[chunk.token(r) * V + v0 + j] = x;
          });
    }
    for (int64_t k0 = 0; k0 < K; k0 += kRows) {
      tile.clear();
      multiply<A, Along::rows, Along::rows>(
          tile, chunk.s.strips, at.count, chunk.count,
          [&](int c, int64_t i, bool is_wanted) {
            const int r = static_cast<int>(i);
            is_wanted = is_wanted && k0 + c < K;
            return chunk.k(r, k0 + c, is_wanted) * chunk.of_keys(w.after, r, k0 + c, is_wanted);
          },
          [&](int j, int64_t i, bool is_wanted) {
            const int r = static_cast<int>(i);
            return chunk.u(r, v0 + j, is_wanted) * chunk.of_values(w.after, r, v0 + j, is_wanted);
          });
      give_state(chunk, tile, at, k0, next, state);
    }
  }
  __syncthreads();
  if (w.p.last_state) copy_state(w, at, static_cast<T*>(w.p.last_state) + at.head * K * V, states + w.chunks * K * V);
}

// Columns of values that a block has where D may stand at the values.
template <class T>
__host__ __device__ int64_t value_step(const Work<T>& w) {
  return w.p.decay == Decay::value ? kStrip : kColumns;
}
template <class T>
__host__ __device__ int64_t value_parts(const Work<T>& w) {
  return (w.p.value_width + value_step(w) - 1) / value_step(w);
}

// Outputs, to `out` or, if it is given, to wide rows [B, H, T, V]. Blocks are [B, H, chunks, parts].
template <class A>
__global__ void __launch_bounds__(kBlock, kBlocks<typename A::T>)
    read_states(const __grid_constant__ Work<typename A::T> w, typename A::T* wide) {
  using T = typename A::T;
  const int64_t V = w.p.value_width, step = value_step(w);
  const Place place = place_of(w, value_parts(w));
  ChunkOf<A> chunk(w, shared_of<T>(), place.b, place.h, place.n);
  const int64_t v0 = place.part * step, columns = smaller(step, V - v0);
  const T* state = chunk.state(w.states);
  Tile<A> tile;
  tile.clear();
  multiply<A, Along::depth, Along::rows>(
      tile, chunk.s.strips, columns, w.p.key_width,
      [&](int r, int64_t c, bool is_wanted) {
        return chunk.q(r, c, is_wanted) * chunk.of_keys(w.before, r, c, is_wanted);
      },
      [&](int j, int64_t c, bool is_wanted) { return load_if(state + (c * V + v0 + j), is_wanted); });
  if (chunk.is_of_values())
    tile.each([&](int r, int j, T& x) { x *= chunk.of_values(w.before, r, v0 + j, j < columns); });
  apply<A, false>(chunk, tile, v0, columns, chunk.is_of_values(), chunk.matrix(w.pairs),
                  [&](int i, int64_t j, bool is_wanted) { return chunk.u(i, j, is_wanted); });
  const Operand out = w.p.out.at(place.b, place.h);
  tile.each([&](int r, int j, T x) {
    if (r >= chunk.count || j >= columns) return;
    if (wide) wide[chunk.token(r) * V + v0 + j] = x;
    else store(out, (chunk.first + r) * out.token_stride + v0 + j, x);
  });
}

// A Work and its memory, which must live until the kernels have been asked for.
template <class A>
struct Prepared {
  using T = typename A::T;

  std::string_view op;
  Work<T> w{};
  std::vector<Tensor> memory = {};

  Prepared(std::string_view name, const cpu::RecurrenceProblem& p) : op(name) {
    w.p = p;
    w.group = p.heads_per_group();
    w.decay_width = p.decay == Decay::scalar ? 1 : p.decay == Decay::key ? p.key_width : p.value_width;
    w.chunk = static_cast<int>(RecurrenceKernels<T>::block_to_keep(p));
    w.chunks = static_cast<int>((p.tokens + w.chunk - 1) / w.chunk);
    w.is_delta = p.beta.data != nullptr;
    // Narrower parts where there would be fewer than a GPU has multiprocessors. Sums are the same in any.
    w.state_step = kColumns;
    while (w.state_step > 16 && state_blocks() < 132) w.state_step /= 2;
    w.before = take(tokens() * w.decay_width), w.after = take(tokens() * w.decay_width);
    w.total = take(chunks() * w.decay_width);
    w.pairs = take(chunks() * kRows * kRows);
    if (!w.is_delta) return;
    w.strict = take(chunks() * kRows * kRows), w.inverse = take(chunks() * kRows * kRows);
    w.keys_seen = take(tokens() * p.key_width), w.errors = take(tokens() * p.value_width);
  }
  int64_t heads() const { return w.p.batch * w.p.heads; }
  int64_t tokens() const { return heads() * w.p.tokens; }
  int64_t chunks() const { return heads() * w.chunks; }
  int64_t states() const { return (chunks() + heads()) * w.p.key_width * w.p.value_width; }
  int64_t state_blocks() const { return heads() * ((w.p.value_width + w.state_step - 1) / w.state_step); }
  T* take(int64_t n) {
    memory.push_back(Tensor::empty({n}, dtype_of<T>(), Device::cuda(w.p.device)));
    return memory.back().template mutable_data<T>();
  }
  template <class... P, class... X>
  void launch(void (*kernel)(P...), int64_t blocks, X... more) const {
    cuda::launch(op, kernel, dim3(static_cast<unsigned>(blocks)), dim3(kBlock), sizeof(Shared<T>), stream(w.p.device),
                 w, more...);
  }

  void enter() const { launch(enter_chunks<A>, chunks()); }
  // States and errors; from states of the first of two passes if there are any.
  void find_states() {
    w.states = take(states());
    if (w.p.kept_states) correct_states(w);
    else launch(advance_states<A>, state_blocks());
  }
  void read(T* wide) const { launch(read_states<A>, chunks() * value_parts(w), wide); }
};

template <class A>
void Chunks<A>::forward(const cpu::RecurrenceProblem& p) {
  Prepared<A> prepared("recur", p);
  prepared.enter();
  prepared.find_states();
  if (p.out.data) prepared.read(nullptr);
}

template <class A>
void Chunks<A>::keep_states(const cpu::RecurrenceProblem& p) {
  Prepared<A> prepared("recur_states", p);
  prepared.w.p.state = nullptr;
  prepared.w.states = static_cast<typename A::T*>(p.kept_states);
  prepared.enter();
  prepared.launch(advance_states<A>, prepared.state_blocks());
  keep_decays(prepared.w);
}

}  // namespace weft::cuda::recurrence
