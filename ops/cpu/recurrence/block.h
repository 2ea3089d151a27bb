// What both sides of the chunkwise recurrence share: one head of one row, cut into blocks of tokens, and the rows of a block in scratch. A
// worker takes a few heads of a row together, block by block: their rows lie side by side in memory. Decays are never logarithms here.
// Every factor of the equations is a product of consecutive decays a_t, each at most 1, so nothing overflows, and the first token of a
// document has the decay 0, which keeps documents apart in all of them.
#pragma once

#include <algorithm>

#include "ops/cpu/recurrence/product.h"

namespace weft::cpu {
namespace {

// Decays per channel are applied pair by pair inside a block; one number per token is a factor of the scores of larger blocks.
inline constexpr int64_t kChannelBlock = 16, kScalarBlock = 32;
// Of backward of the plain write, which reads and writes a state per block.
inline constexpr int64_t kPlainBackwardBlock = 64;

template <class T>
struct Sizes {
  int64_t block;    // tokens
  int64_t C, K, V;  // of a block, key width, value width, padded to kStep
  int64_t blocks;   // of a row

  Sizes(const RecurrenceProblem& p, bool is_backward) {
    const bool is_scalar = p.decay == Decay::scalar;
    block = !is_scalar ? kChannelBlock : is_backward && !p.beta.data ? kPlainBackwardBlock : kScalarBlock;
    if (p.chunk > 0) block = smaller(p.chunk, is_scalar ? kMaxScalarBlock : kChannelBlock);
    block = larger(1, smaller(block, p.tokens));
    C = round_up(block, kStep<T>), K = round_up(p.key_width, kStep<T>), V = round_up(p.value_width, kStep<T>);
    blocks = (p.tokens + block - 1) / block;
  }

  static constexpr int64_t kMaxScalarBlock = 128;
};

// The problem of the value columns of a part.
template <class T>
RecurrenceProblem columns_of(const RecurrenceProblem& all, int64_t part) {
  if (all.parts == 1) return all;
  RecurrenceProblem p = all;
  const int64_t first = part * all.part_width, tokens = p.batch * p.tokens;
  p.value_width = smaller(all.part_width, all.value_width - first);
  auto shift = [](Operand& o, int64_t elements) {
    if (o.data) o.data = static_cast<const char*>(o.data) + elements * o.element_bytes;
  };
  auto shift_state = [&](auto& state) {
    auto* numbers = static_cast<T*>(const_cast<void*>(state));
    if (state) state = numbers + first;
  };
  for (Operand* o : {&p.v, &p.out, &p.dout, &p.dv}) shift(*o, first);
  shift_state(p.state), shift_state(p.last_state), shift_state(p.dlast_state), shift_state(p.dstate);
  shift_state(p.kept_states);
  if (p.decay == Decay::value) shift_state(p.kept_decays);
  else p.gives_decays = part == 0;
  for (Operand* o : {&p.dq, &p.dk}) shift(*o, part * tokens * p.key_heads * p.sums_per_group * p.key_width);
  shift(p.dbeta, part * tokens * p.heads);
  if (p.decay == Decay::value) shift(p.log_decay, first), shift(p.dlog_decay, first);
  else shift(p.dlog_decay, part * tokens * p.heads * (p.decay == Decay::key ? p.key_width : 1));
  if (p.dlog_decay_of_head) p.dlog_decay_of_head += part * p.batch * p.heads;
  return p;
}

// Value heads [first, last) of row b.
struct Heads {
  int64_t b, first, last;
  int64_t count() const { return last - first; }
};

// One head of one row.
template <class T>
struct HeadView {
  const RecurrenceProblem& p;
  int64_t b, h, group;
  int64_t sum;  // of dq and dk, to which the head belongs
  Operand q, k, v, log_decay, beta, writes;

  HeadView(const RecurrenceProblem& problem, int64_t b_, int64_t h_)
      : p(problem),
        b(b_),
        h(h_),
        group(h_ / problem.heads_per_group()),
        sum(h_ / problem.heads_per_sum()),
        q(p.q.at(b, group)),
        k(p.k.at(b, group)),
        v(p.v.at(b, h)),
        log_decay(p.log_decay.at(b, h)),
        beta(p.beta.at(b, h)),
        writes(p.writes.at(b, h)) {}

  Mark mark(int64_t t) const { return p.marks ? p.marks[b * p.tokens + t] : Mark::token; }
  bool is_writing(int64_t t) const {
    return !writes.data || static_cast<const bool*>(writes.data)[t * writes.token_stride];
  }
  int64_t state_offset() const { return (b * p.heads + h) * p.key_width * p.state_width; }

  // Rows of tokens [first, first + n) of x, zeros for padding and behind them.
  void load_rows(const Operand& x, int64_t first, int64_t n, int64_t width, T scale, Matrix<T> to, int64_t rows) const {
    pack_rows<T>(x, first, n, width, scale, to.data, to.ld, rows);
    if (!p.marks) return;
    for (int64_t i = 0; i < n; ++i)
      if (mark(first + i) == Mark::padding) std::fill_n(to.row(i), to.ld, T(0));
  }
  // Values that are written: zeros where a token does not write.
  void load_values(int64_t first, int64_t n, Matrix<T> to, int64_t rows) const {
    load_rows(v, first, n, p.value_width, T(1), to, rows);
    if (!writes.data) return;
    for (int64_t i = 0; i < n; ++i)
      if (!is_writing(first + i)) std::fill_n(to.row(i), to.ld, T(0));
  }
  // Asks for the rows of the block that begins at `next`, if there is one. An operand may be absent.
  void fetch_rows(const Operand& x, int64_t next, int64_t block, int64_t width) const {
    if (x.data && next >= 0 && next < p.tokens) prefetch_rows(x, next, smaller(p.tokens, next + block), width);
  }
  // Decays of one number per token.
  void load_decays(int64_t first, int64_t n, int64_t padded, T* alpha) const {
    std::fill_n(alpha, padded, T(0));
    if (log_decay.data)
      for (int64_t i = 0; i < n; ++i) alpha[i] = element<T>(log_decay, (first + i) * log_decay.token_stride);
    for (int64_t i = 0; i < padded; i += kLanes<T>) store(alpha + i, lane_exp2(load(alpha + i) * T(kLog2e)));
    if (!p.marks) return;
    for (int64_t i = 0; i < n; ++i)
      if (mark(first + i) != Mark::token) alpha[i] = mark(first + i) == Mark::first ? T(0) : T(1);
  }
  // Decays of `width` channels per token.
  void load_decays(int64_t first, int64_t n, int64_t width, Matrix<T> alpha, int64_t rows) const {
    pack_rows<T>(log_decay, first, n, width, T(kLog2e), alpha.data, alpha.ld, rows);
    for (int64_t i = 0; i < n; ++i) {
      T* row = alpha.row(i);
      const Mark m = mark(first + i);
      if (m != Mark::token) std::fill_n(row, alpha.ld, m == Mark::first ? T(0) : T(1));
      else
        for (int64_t c = 0; c < alpha.ld; c += kLanes<T>) store(row + c, lane_exp2(load(row + c)));
    }
    std::fill_n(alpha.row(n), (rows - n) * alpha.ld, T(1));
  }
  void load_state(const void* from, Matrix<T> to, int64_t rows) const {
    std::fill_n(to.data, rows * to.ld, T(0));
    if (!from) return;
    const T* state = static_cast<const T*>(from) + state_offset();
    for (int64_t c = 0; c < p.key_width; ++c) std::copy_n(state + c * p.state_width, p.value_width, to.row(c));
  }
  void store_state(void* to, Matrix<T> from) const {
    T* state = static_cast<T*>(to) + state_offset();
    for (int64_t c = 0; c < p.key_width; ++c) std::copy_n(from.row(c), p.value_width, state + c * p.state_width);
  }

  // Of two passes: whether the state before this token was kept, and which it is.
  bool is_kept(int64_t token) const { return p.kept_states && token < p.tokens && token % p.kept_block == 0; }
  // Which of the kept states is behind the tokens before this one.
  int64_t kept_behind(int64_t token) const { return (token + p.kept_block - 1) / p.kept_block; }
  T* kept_state(int64_t n) const {
    const int64_t each = p.key_width * p.state_width;
    return static_cast<T*>(p.kept_states) + ((b * p.heads + h) * (p.kept_blocks() + 1) + n) * each;
  }
  int64_t decay_width() const { return p.decay == Decay::value ? p.state_width : p.key_width; }
  int64_t decays_here() const { return p.decay == Decay::value ? p.value_width : p.key_width; }
  T* kept_decays(int64_t n) const {
    return static_cast<T*>(p.kept_decays) + ((b * p.heads + h) * (p.kept_blocks() + 1) + n) * decay_width();
  }
  // State n.
  void keep(int64_t n, Matrix<T> state) const {
    T* to = kept_state(n);
    for (int64_t c = 0; c < p.key_width; ++c) std::copy_n(state.row(c), p.value_width, to + c * p.state_width);
  }
  // The decays up to state n: those up to state n - 1, or of it as far as they go, and `total` of the block behind them.
  void keep_decays(int64_t n, bool is_first, const T* total) const {
    if (!p.gives_decays) return;
    T* decays = kept_decays(n);
    const T* before = is_first ? decays - decay_width() : decays;
    for (int64_t c = 0; c < decays_here(); ++c) decays[c] = before[c] * total[c];
  }
  // State n as it is with the state that comes in.
  void load_kept(int64_t n, Matrix<T> to, int64_t rows) const {
    std::fill_n(to.data, rows * to.ld, T(0));
    const T *from = kept_state(n), *decays = kept_decays(n);
    const T* coming = p.state ? static_cast<const T*>(p.state) + state_offset() : nullptr;
    const bool is_of_values = p.decay == Decay::value;
    for (int64_t c = 0; c < p.key_width; ++c, from += p.state_width) {
      std::copy_n(from, p.value_width, to.row(c));
      if (!coming) continue;
      const T* row = coming + c * p.state_width;
      for (int64_t v = 0; v < p.value_width; ++v) to.row(c)[v] += decays[is_of_values ? v : c] * row[v];
    }
  }
  // The state behind block n to two places, if it was kept.
  bool load_behind(int64_t n, const Sizes<T>& z, Matrix<T> to, Matrix<T> running) const {
    const int64_t end = smaller(p.tokens, (n + 1) * z.block);
    if (!p.kept_states || (end < p.tokens && !is_kept(end))) return false;
    load_kept(kept_behind(end), to, z.K);
    if (p.kept_block > z.block) std::copy_n(to.data, z.K * z.V, running.data);
    return true;
  }

  static constexpr double kLog2e = 1.44269504088896340736;
};

// to(i, :) = x(i, :) y(i, :) for `rows` rows, or factor x(i, :) y(i, :).
template <class T>
void multiply_rows(Matrix<T> x, Matrix<T> y, Matrix<T> to, int64_t rows, T factor = T(1)) {
  for (int64_t i = 0; i < rows * to.ld; i += kLanes<T>)
    store(to.data + i, load(x.data + i) * load(y.data + i) * factor);
}
template <class T>
void multiply_rows(Matrix<T> x, const T* factors, Matrix<T> to, int64_t rows) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t c = 0; c < to.ld; c += kLanes<T>) store(to.row(i) + c, load(x.row(i) + c) * factors[i]);
}
template <class T>
[[gnu::always_inline]] inline T dot(const T* x, const T* y, int64_t n) {
  Lanes<T> sum{};
  for (int64_t c = 0; c < n; c += kLanes<T>) sum += load(x + c) * load(y + c);
  return sum_of(sum);
}

// Products of the decays of a block's rows: before(i) = a_0 .. a_i, after(i) = a_{i+1} .. a_{n-1}.
template <class T>
void running_products(Matrix<T> alpha, int64_t rows, Matrix<T> before, Matrix<T> after) {
  for (int64_t c = 0; c < alpha.ld; c += kLanes<T>) {
    Lanes<T> product = broadcast<Lanes<T>>(T(1));
    for (int64_t i = 0; i < rows; ++i) store(before.row(i) + c, product *= load(alpha.row(i) + c));
    product = broadcast<Lanes<T>>(T(1));
    for (int64_t i = rows - 1; i >= 0; --i) store(after.row(i) + c, product), product *= load(alpha.row(i) + c);
  }
}

// Decays of channels inside a block of n <= kChannelBlock tokens, with D(r, i) = a_{i+1} .. a_r per channel.

// With kReads scores(r, i) = sum_c q(r, c) k(i, c) D(r, i, c) for i <= r; with kStrict strict(r, i) = -sum_c k(r, c) k(i, c) D(r, i, c) for i < r.
// Lanes are i; a lane begins when its token comes. `lanes` is scratch of a vector per channel.
template <bool kReads, bool kStrict, class T>
[[gnu::noinline]] void decayed_scores(Matrix<T> q, Matrix<T> k, Matrix<T> alpha, int64_t n, int64_t padded,
                                      int64_t width, Matrix<T> scores, Matrix<T> strict, T* lanes) {
  constexpr int L = kLanes<T>;
  using V = Lanes<T>;
  using Index = typename LaneTraits<V>::Bits;
  Index lane;
  for (int i = 0; i < L; ++i) lane[i] = i;
  for (int64_t i0 = 0; i0 < padded; i0 += L) {
    std::fill_n(lanes, width * L, T(0));
    for (int64_t r = 0; r < padded; ++r) {
      V sum[2] = {}, strict_sum[2] = {};
      if (r >= i0 && r < n) {
        const Index is_own = lane == (Index{} + static_cast<typename LaneTraits<Index>::Element>(r - i0));
        [[maybe_unused]] const T* q_row = q.row(r);
        const T *k_row = k.row(r), *a_row = alpha.row(r);
        for (int64_t c = 0; c < width; c += 2)
#pragma GCC unroll 2
          for (int u = 0; u < 2; ++u) {
            V x = load(lanes + (c + u) * L) * a_row[c + u], key = broadcast<V>(k_row[c + u]);
            if constexpr (kStrict) strict_sum[u] -= x * key;
            x = is_own ? key : x;
            store(lanes + (c + u) * L, x);
            if constexpr (kReads) sum[u] += x * q_row[c + u];
          }
      }
      if constexpr (kReads) store(scores.row(r) + i0, sum[0] + sum[1]);
      if constexpr (kStrict) store(strict.row(r) + i0, strict_sum[0] + strict_sum[1]);
    }
  }
}

// y(r, :) += sum over i <= r of A(r, i) x(i, :) D(r, i), for one or two A and y.
template <int kCount, class T>
[[gnu::noinline]] void apply_decayed(const Matrix<T> (&A)[kCount], Matrix<T> x, Matrix<T> alpha, int64_t n,
                                     const Matrix<T> (&y)[kCount]) {
  using V = Lanes<T>;
  for (int64_t c = 0; c < x.ld; c += kLanes<T>) {
    V seen[kChannelBlock];
    for (int64_t r = 0; r < n; ++r) {
      const V decay = load(alpha.row(r) + c);
      V sum[kCount];
      seen[r] = load(x.row(r) + c);
      for (int a = 0; a < kCount; ++a) sum[a] = load(y[a].row(r) + c) + seen[r] * A[a].row(r)[r];
      for (int64_t i = 0; i < r; ++i) {
        seen[i] *= decay;
        for (int a = 0; a < kCount; ++a) sum[a] += seen[i] * A[a].row(r)[i];
      }
      for (int a = 0; a < kCount; ++a) store(y[a].row(r) + c, sum[a]);
    }
  }
}

// z(i, :) += sum over r >= i of A(r, i) x(r, :) D(r, i), summed over one or two A and x.
template <int kCount, class T>
[[gnu::noinline]] void apply_decayed_transposed(const Matrix<T> (&A)[kCount], const Matrix<T> (&x)[kCount],
                                                Matrix<T> alpha, int64_t n, Matrix<T> z) {
  using V = Lanes<T>;
  for (int64_t c = 0; c < z.ld; c += kLanes<T>) {
    V seen[kCount][kChannelBlock];
    for (int64_t i = n - 1; i >= 0; --i) {
      V sum = load(z.row(i) + c);
      for (int a = 0; a < kCount; ++a) {
        seen[a][i] = load(x[a].row(i) + c);
        sum += seen[a][i] * A[a].row(i)[i];
      }
      if (i + 1 < n) {
        const V decay = load(alpha.row(i + 1) + c);
        for (int64_t r = i + 1; r < n; ++r)
          for (int a = 0; a < kCount; ++a) {
            seen[a][r] *= decay;
            sum += seen[a][r] * A[a].row(r)[i];
          }
      }
      store(z.row(i) + c, sum);
    }
  }
}

}  // namespace
}  // namespace weft::cpu
