// The element-wise recurrence y_t = a_t y_{t-1} + x_t with a_t = exp(g_t). Lanes are channels. Backward, with d_t = dy_t + a_{t+1} d_{t+1}:
// dx_t = d_t, dg_t = d_t a_t y_{t-1}. It computes y again: first the y before each segment of tokens, then, from the last segment to the
// first, those inside.
#include "ops/cpu/recurrence/decay_scan.h"

#include <algorithm>

#include "weft/core/parallel.h"
#include "weft/ops/attention/tile.h"

namespace weft::cpu {

using namespace ops::core;

namespace {

constexpr double kLog2e = 1.44269504088896340736;

template <class T>
struct Piece {
  const DecayScanProblem& p;
  int64_t b, first, count;  // channels [first, first + count)
  T x[kPiece] = {}, alpha[kPiece] = {};

  Piece(const DecayScanProblem& problem, int64_t i) : p(problem) {
    const int64_t each = problem.pieces() / problem.batch;
    b = i / each, first = i % each * kPiece, count = smaller(kPiece, problem.dim - first);
  }
  Mark mark(int64_t t) const { return p.marks ? p.marks[b * p.tokens + t] : Mark::token; }
  int64_t at(const Operand& o, int64_t t) const { return b * o.batch_stride + t * o.token_stride + first; }

  void load_row(const Operand& o, int64_t t, T* to) const {
    if (!o.data) return static_cast<void>(std::fill_n(to, kPiece, T(0)));
    const int64_t from = at(o, t);
    if (o.is_bf16)
      for (int64_t c = 0; c < count; ++c) to[c] = element<T>(o, from + c);
    else
      for (int64_t c = 0; c < count; ++c) to[c] = static_cast<const T*>(o.data)[from + c];
  }
  void store_row(const Operand& o, int64_t t, const T* row) const {
    if (!o.data) return;
    const int64_t to = at(o, t);
    if (o.is_bf16)
      for (int64_t c = 0; c < count; ++c)
        static_cast<BFloat16*>(const_cast<void*>(o.data))[to + c] = BFloat16(static_cast<float>(row[c]));
    else
      for (int64_t c = 0; c < count; ++c) static_cast<T*>(const_cast<void*>(o.data))[to + c] = row[c];
  }
  void load_decay(int64_t t) {
    load_row(p.log_decay, t, alpha);
    for (int64_t c = 0; c < kPiece; c += kLanes<T>) store(alpha + c, lane_exp2(load(alpha + c) * T(kLog2e)));
  }
  // y before the token becomes y after it.
  void step(int64_t t, T* y) {
    const Mark m = mark(t);
    if (m == Mark::padding) return;
    load_row(p.x, t, x);
    if (m == Mark::first) return static_cast<void>(std::copy_n(x, kPiece, y));
    load_decay(t);
    for (int64_t c = 0; c < kPiece; ++c) y[c] = alpha[c] * y[c] + x[c];
  }
  void load_state(const void* from, T* to) const {
    std::fill_n(to, kPiece, T(0));
    if (from) std::copy_n(static_cast<const T*>(from) + b * p.dim + first, count, to);
  }
  void store_state(void* to, const T* from) const {
    if (to) std::copy_n(from, count, static_cast<T*>(to) + b * p.dim + first);
  }
};

template <class T>
void forward_piece(const DecayScanProblem& p, int64_t i) {
  Piece<T> s(p, i);
  T y[kPiece], zeros[kPiece] = {};
  s.load_state(p.state, y);
  for (int64_t t = 0; t < p.tokens; ++t) {
    s.step(t, y);
    s.store_row(p.y, t, s.mark(t) == Mark::padding ? zeros : y);
  }
  s.store_state(p.last_state, y);
}

template <class T>
void backward_piece(const DecayScanProblem& p, int64_t i) {
  Piece<T> s(p, i);
  const int64_t segments = (p.tokens + kScanSegment - 1) / kScanSegment;
  T* before = reinterpret_cast<T*>(scratch(static_cast<size_t>((segments + 1 + kScanSegment) * kPiece) * sizeof(T)));
  T* inside = before + (segments + 1) * kPiece;  // y before each token of the segment
  s.load_state(p.state, before);
  for (int64_t n = 0; n + 1 < segments; ++n) {
    T* y = before + (n + 1) * kPiece;
    std::copy_n(y - kPiece, kPiece, y);
    for (int64_t t = n * kScanSegment; t < (n + 1) * kScanSegment; ++t) s.step(t, y);
  }
  T d[kPiece], dy[kPiece] = {}, dg[kPiece];
  double of_row[kPiece] = {};
  const T zeros[kPiece] = {};
  s.load_state(p.dlast_state, d);
  for (int64_t n = segments - 1; n >= 0; --n) {
    const int64_t start = n * kScanSegment, end = smaller(p.tokens, start + kScanSegment);
    T* y = before + n * kPiece;
    for (int64_t t = start; t < end; ++t) std::copy_n(y, kPiece, inside + (t - start) * kPiece), s.step(t, y);
    for (int64_t t = end - 1; t >= start; --t) {
      const Mark m = s.mark(t);
      std::fill_n(dg, kPiece, T(0));
      if (m == Mark::padding) {
        s.store_row(p.dx, t, zeros), s.store_row(p.dlog_decay, t, dg);
        continue;
      }
      s.load_row(p.dy, t, dy);
      for (int64_t c = 0; c < kPiece; ++c) d[c] += dy[c];
      s.store_row(p.dx, t, d);
      if (m == Mark::first) {
        std::fill_n(d, kPiece, T(0));
      } else {
        s.load_decay(t);
        const T* last = inside + (t - start) * kPiece;
        for (int64_t c = 0; c < kPiece; ++c) {
          d[c] *= s.alpha[c];
          dg[c] = d[c] * last[c];
          of_row[c] += static_cast<double>(dg[c]);
        }
      }
      s.store_row(p.dlog_decay, t, dg);
    }
  }
  if (p.dlog_decay_of_row) std::copy_n(of_row, s.count, p.dlog_decay_of_row + s.b * p.dim + s.first);
  s.store_state(p.dstate, d);
}

}  // namespace

template <Isa I, class T>
void DecayScanKernels<I, T>::forward(const DecayScanProblem& p) {
  parallel_items(p.pieces(), [&](int64_t i) { forward_piece<T>(p, i); });
}

template <Isa I, class T>
void DecayScanKernels<I, T>::backward(const DecayScanProblem& p) {
  parallel_items(p.pieces(), [&](int64_t i) { backward_piece<T>(p, i); });
}

template struct DecayScanKernels<kThisIsa, float>;
#if !defined(__AVX2__)
template struct DecayScanKernels<kThisIsa, double>;
#endif

}  // namespace weft::cpu
