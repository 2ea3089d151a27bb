// A chunk of up to 64 tokens of one head: what kernels read of it, and where they keep what they have computed of all chunks.
// Decays are never logarithms: every factor is a product of consecutive decays, each at most 1, and the first token of a document has the
// decay 0, which keeps documents apart in all of them. Names are those of ops/cpu/recurrence/key_side.h and value_side.h; in place of its U,
// u = beta e with the error e = v - k S' of the delta rule, and without it e = v and beta is 1 where a token writes, else 0.
#pragma once

#include <limits>

#include "ops/cuda/recurrence/product.cuh"
#include "ops/math/scalar.h"

namespace weft::cuda::recurrence {

using cpu::Decay;
using cpu::Mark;
using ops::core::Operand;

inline constexpr int kStrip = 32;  // channels whose decays are in shared memory
inline constexpr int kLevels = 6;  // blocks of 1, 2 .. 32 rows

template <class T>
struct Work {
  cpu::RecurrenceProblem p;
  int64_t group, decay_width;  // heads of a group; numbers of a token's decay
  int chunk, chunks;           // tokens of a chunk, chunks of a row
  int state_step;              // value columns of a block that walks from chunk to chunk
  bool is_delta;

  // Per token [B, H, T, width]: products of decays a_first .. a_t and a_{t+1} .. a_last of its chunk, [decay_width]; of the delta rule
  // inverse (before k) [K] and, after the pass over states, errors [V].
  T *before, *after, *keys_seen, *errors;
  T* total;                     // [B, H, chunks, decay_width]: product of a chunk's decays
  T *pairs, *strict, *inverse;  // [B, H, chunks, 64, 64]: P, M = -Mn, (I + M Diag(beta))^-1
  T* states;                    // [B, H, chunks + 1, K, V]: before each chunk, and behind the last

  T* out;                     // backward with decays of value channels: outputs [B, H, T, V]
  T *du, *dv;                 // [B, H, T, V]
  T *dpairs, *dstrict;        // as pairs and strict
  T* dstates;                 // gradients of states
  T *dq, *dreader, *dwriter;  // [B, H, T, K]
};

// In f64 it is just as much as GPUs of compute capability 8.6 and 8.9 have for a block.
template <class T>
struct Shared {
  Strips<T> strips;
  T before[kRows][kStrip + 1], after[kRows][kStrip + 1];
  T beta[kRows];
  uint16_t marks[kRows];
};

// Blocks that shared memory has room for on a multiprocessor of compute capability 8.0. Where kernels say it, the compiler fits its registers
// to that; without, it takes fewer and spills, or more and leaves room for fewer blocks.
template <class T>
inline constexpr int kBlocks = sizeof(T) == sizeof(float) ? 3 : 1;

template <class T>
__device__ __forceinline__ T element(const Operand& x, int64_t at) {
  if (x.is_bf16) return static_cast<T>(static_cast<float>(static_cast<const BFloat16*>(x.data)[at]));
  return static_cast<const T*>(x.data)[at];
}
template <class T>
__device__ __forceinline__ void store(const Operand& x, int64_t at, T value) {
  if (x.is_bf16) static_cast<BFloat16*>(const_cast<void*>(x.data))[at] = BFloat16(static_cast<float>(value));
  else static_cast<T*>(const_cast<void*>(x.data))[at] = value;
}
// exp(g); NaN if g is above 0 or not finite.
template <class T>
__device__ __forceinline__ T decay_of(T g) {
  const T a = math::exp(g);
  return g <= 0 && g >= -std::numeric_limits<T>::max() ? a : std::numeric_limits<T>::quiet_NaN();
}

// E: the type that elements of q, k, v and dout have in memory.
template <class T, class E>
struct Chunk {
  static constexpr int kAbsent = static_cast<int>(Mark::padding);

  const Work<T>& w;
  Shared<T>& s;
  int64_t b, h, head;  // head: b H + h
  int n, count;
  int64_t first, first_token;                     // token of row 0: in its row of the batch, in what kernels keep
  const E *q_rows, *k_rows, *v_rows, *dout_rows;  // row 0
  Operand decays;

  __device__ __forceinline__ Chunk(const Work<T>& work, Shared<T>& shared, int64_t row, int64_t value_head, int chunk)
      : w(work),
        s(shared),
        b(row),
        h(value_head),
        head(row * work.p.heads + value_head),
        n(chunk),
        first(int64_t{chunk} * work.chunk),
        first_token(head * work.p.tokens + first),
        decays(work.p.log_decay.at(row, value_head)) {
    // Dividing integers is slow: once here, not for every element.
    const int key_head = static_cast<int>(h) / static_cast<int>(w.group);
    q_rows = rows_of(w.p.q, key_head), k_rows = rows_of(w.p.k, key_head);
    v_rows = rows_of(w.p.v, h), dout_rows = rows_of(w.p.dout, h);
    count = static_cast<int>(smaller(w.chunk, w.p.tokens - first));
    __syncthreads();  // who is still at the chunk before reads its marks
    const int r = static_cast<int>(threadIdx.x);
    if (r < kRows) {
      int mark = kAbsent;
      if (r < count) mark = static_cast<int>(w.p.marks ? w.p.marks[b * w.p.tokens + first + r] : Mark::token);
      const Operand writes = w.p.writes.at(b, h), strength = w.p.beta.at(b, h);
      T beta = mark == kAbsent ? T(0) : T(1);
      if (beta != 0 && writes.data && !static_cast<const bool*>(writes.data)[(first + r) * writes.token_stride])
        beta = 0;
      if (beta != 0 && w.is_delta) beta = element<T>(strength, (first + r) * strength.token_stride);
      s.marks[r] = static_cast<uint16_t>(mark), s.beta[r] = beta;
    }
    __syncthreads();
  }

  // Elements that products are made of: 0 where they are not wanted. Nothing branches here, so that several are loaded at a time.
  // Rows of inputs; zeros for padding and behind the last token.
  __device__ __forceinline__ bool is_there(int r) const { return s.marks[r] != kAbsent; }
  __device__ __forceinline__ const E* rows_of(const Operand& x, int64_t of) const {
    return x.data ? static_cast<const E*>(x.at(b, of).data) + first * x.token_stride : nullptr;
  }
  __device__ __forceinline__ T input(const E* rows, const Operand& x, int r, int64_t c, bool is_wanted) const {
    return static_cast<T>(load_if(rows + (r * x.token_stride + c), is_wanted && is_there(r)));
  }
  __device__ __forceinline__ T q(int r, int64_t c, bool is_wanted = true) const {
    return static_cast<T>(w.p.scale) * input(q_rows, w.p.q, r, c, is_wanted);
  }
  __device__ __forceinline__ T k(int r, int64_t c, bool is_wanted = true) const {
    return input(k_rows, w.p.k, r, c, is_wanted);
  }
  __device__ __forceinline__ T v(int r, int64_t c, bool is_wanted = true) const {
    return input(v_rows, w.p.v, r, c, is_wanted);
  }
  __device__ __forceinline__ T dout(int r, int64_t c, bool is_wanted = true) const {
    return input(dout_rows, w.p.dout, r, c, is_wanted && dout_rows);
  }
  // The decay of a row in two parts, so that several can be loaded before one is used. G: the type of logarithms of decays.
  template <class G>
  __device__ __forceinline__ T log_decay(int r, int64_t c, bool is_wanted) const {
    const G* from = static_cast<const G*>(decays.data) + ((first + r) * decays.token_stride + c);
    return static_cast<T>(load_if(from, is_wanted && w.p.log_decay.data && is_there(r)));
  }
  __device__ __forceinline__ T alpha(int r, T log_decay) const {
    if (!is_there(r)) return 1;
    if (s.marks[r] == static_cast<int>(Mark::first)) return 0;
    return w.p.log_decay.data ? decay_of(log_decay) : T(1);
  }

  // Rows of what kernels keep.
  __device__ __forceinline__ int64_t token(int r) const { return first_token + r; }
  __device__ __forceinline__ T kept(const T* x, int64_t width, int r, int64_t c, bool is_wanted = true) const {
    return load_if(x + (first_token * width + r * width + c), is_wanted && r < count);
  }
  __device__ __forceinline__ T e(int r, int64_t c, bool is_wanted = true) const {
    const T error = kept(w.errors, w.p.value_width, r, c, is_wanted && w.is_delta);
    const T value = v(r, c, is_wanted && !w.is_delta);
    return w.is_delta ? error : value;
  }
  __device__ __forceinline__ T u(int r, int64_t c, bool is_wanted = true) const {
    const T beta = s.beta[r], error = e(r, c, is_wanted && beta != 0);
    return beta != 0 ? beta * error : T(0);
  }
  __device__ __forceinline__ T beta_du(int r, int64_t c, bool is_wanted = true) const {
    const T beta = s.beta[r], du = kept(w.du, w.p.value_width, r, c, is_wanted && beta != 0);
    return beta != 0 ? beta * du : T(0);
  }
  __device__ __forceinline__ T dv(int r, int64_t c, bool is_wanted = true) const {
    return kept(w.dv, w.p.value_width, r, c, is_wanted);
  }

  // Factors of keys and of values; 1 for the side that does not decay.
  __device__ __forceinline__ bool is_of_values() const { return w.p.decay == Decay::value; }
  __device__ __forceinline__ int64_t channel(int64_t c) const { return w.p.decay == Decay::scalar ? 0 : c; }
  __device__ __forceinline__ T of_keys(const T* x, int r, int64_t c, bool is_wanted = true) const {
    const T factor = kept(x, w.decay_width, r, channel(c), is_wanted && !is_of_values());
    return is_of_values() ? T(1) : factor;
  }
  __device__ __forceinline__ T of_values(const T* x, int r, int64_t c, bool is_wanted = true) const {
    const T factor = kept(x, w.decay_width, r, c, is_wanted && is_of_values());
    return is_of_values() ? factor : T(1);
  }
  // Of key channel c and value channel j of the state.
  __device__ __forceinline__ T total(int64_t c, int64_t j, bool is_wanted) const {
    return load_if(w.total + ((head * w.chunks + n) * w.decay_width + (is_of_values() ? j : channel(c))), is_wanted);
  }

  __device__ __forceinline__ T* matrix(T* all) const { return all + (head * w.chunks + n) * kRows * kRows; }
  __device__ __forceinline__ T* state(T* all, int behind = 0) const {
    return all + (head * (w.chunks + 1) + n + behind) * w.p.key_width * w.p.value_width;
  }
};

template <class A>
using ChunkOf = Chunk<typename A::T, typename A::Element>;

// The block's chunk, head and part of columns: blocks are [B, H, chunks, parts].
struct Place {
  int64_t b, h;
  int n;
  int64_t part;
};
template <class T>
__device__ __forceinline__ Place place_of(const Work<T>& w, int64_t parts) {
  // Of 32 bits, which all these numbers have room in: that is several times faster.
  const unsigned block = blockIdx.x, each = static_cast<unsigned>(parts), chunks = static_cast<unsigned>(w.chunks),
                 heads = static_cast<unsigned>(w.p.heads), head = block / each / chunks;
  return {head / heads, head % heads, static_cast<int>(block / each % chunks), block % each};
}

template <class T>
__device__ __forceinline__ Shared<T>& shared_of() {
  return *reinterpret_cast<Shared<T>*>(dynamic_shared());
}

}  // namespace weft::cuda::recurrence
