// Causal depthwise convolution: y[t] = b + sum over w of weight[w] x[t - (W - 1) + w], channel by channel; tokens
// before the start or of another document count as zero. Backward: dx[s] = sum over w of weight[w] dy[s + (W - 1) - w],
// dweight[w] = sum over t of dy[t] x[t - (W - 1) + w], db = sum over t of dy[t].
// A token's taps that count are found once; then each pack of channels is read and written once.
#include "ops/cpu/conv.h"

#include "ops/cpu/norm_lanes.h"

namespace weft::cpu {

using namespace HWY_NAMESPACE;

namespace {

// Calls f(distance) for the distances 0 <= d < taps at which token t + direction * d exists and is of t's document.
template <class F>
HWY_INLINE void for_taps(int64_t t, int64_t tokens, int64_t taps, int direction, const int32_t* documents, F&& f) {
  for (int64_t d = 0; d < taps; ++d) {
    const int64_t other = t + direction * d;
    if (other < 0 || other >= tokens) return;
    if (!documents || documents[other] == documents[t]) f(d);
  }
}

// Up to kTaps rows with their weights; a longer kernel goes through several groups.
template <class T, class C>
struct Taps {
  static constexpr int kTaps = 8;
  const T* rows[kTaps];
  const C* weights[kTaps];
  int count = 0;

  // out = start + sum of weight * row; start is `bias`, or zero, or what `out` holds if this is a later group. The sum
  // of a bf16 result is rounded once per group.
  template <int N>
  HWY_INLINE void add_fixed(const C* bias, bool is_later, T* out, int64_t dim) const {
    for_row<C>(dim, [&](int64_t i, auto n) {
      Pack<C> sum = is_later ? load(static_cast<const T*>(out) + i, n) : bias ? load(bias + i, n) : Pack<C>(C(0));
      for (int k = 0; k < N; ++k) sum = fused(load(weights[k] + i, n), load(rows[k] + i, n), sum);
      store(sum, out + i, n);
    });
  }
  void flush(const C* bias, bool& is_later, T* out, int64_t dim) {
    switch (count) {
      case 0: add_fixed<0>(bias, is_later, out, dim); break;
      case 1: add_fixed<1>(bias, is_later, out, dim); break;
      case 2: add_fixed<2>(bias, is_later, out, dim); break;
      case 3: add_fixed<3>(bias, is_later, out, dim); break;
      case 4: add_fixed<4>(bias, is_later, out, dim); break;
      case 5: add_fixed<5>(bias, is_later, out, dim); break;
      case 6: add_fixed<6>(bias, is_later, out, dim); break;
      case 7: add_fixed<7>(bias, is_later, out, dim); break;
      default: add_fixed<8>(bias, is_later, out, dim);
    }
    is_later = true;
    count = 0;
  }
};

// out[t] = bias + sum over distances d of weight[W - 1 - d] source[t + direction d].
template <class T, class C>
HWY_INLINE void convolve(const ConvArgs<T, C>& args, const T* source, const int64_t (&strides)[2], const C* bias,
                         int direction, int64_t begin, int64_t end) {
  const int64_t last = args.taps - 1;
  for (int64_t token = begin; token < end; ++token) {
    const int64_t b = token / args.tokens, t = token % args.tokens;
    const T* row = source + b * strides[0] + t * strides[1];
    T* out = args.out + token * args.dim;
    Taps<T, C> taps;
    bool is_later = false;
    for_taps(t, args.tokens, args.taps, direction, args.documents ? args.documents + b * args.tokens : nullptr,
             [&](int64_t d) {
               if (taps.count == Taps<T, C>::kTaps) taps.flush(bias, is_later, out, args.dim);
               taps.rows[taps.count] = row + direction * d * strides[1];
               taps.weights[taps.count++] = args.weight + (last - d) * args.dim;
             });
    taps.flush(bias, is_later, out, args.dim);
  }
}

}  // namespace

template <Isa I, class T, class C>
void ConvKernels<I, T, C>::forward(const ConvArgs<T, C>& args, int64_t begin, int64_t end) {
  convolve(args, args.x, args.x_strides, args.bias, -1, begin, end);
}

template <Isa I, class T, class C>
void ConvKernels<I, T, C>::backward_input(const ConvArgs<T, C>& args, int64_t begin, int64_t end) {
  convolve<T, C>(args, args.dy, args.dy_strides, nullptr, 1, begin, end);
}

template <Isa I, class T, class C>
void ConvKernels<I, T, C>::backward_weight(const ConvArgs<T, C>& args, int64_t begin, int64_t end, C* dweight,
                                           C* dbias) {
  for (int64_t token = begin; token < end; ++token) {
    const int64_t b = token / args.tokens, t = token % args.tokens;
    const T* dy = args.dy + b * args.dy_strides[0] + t * args.dy_strides[1];
    const T* x = args.x + b * args.x_strides[0] + t * args.x_strides[1];
    for_taps(t, args.tokens, args.taps, -1, args.documents ? args.documents + b * args.tokens : nullptr,
             [&](int64_t d) {
               C* sums = dweight + (args.taps - 1 - d) * args.dim;
               const T* row = x - d * args.x_strides[1];
               for_row<C>(args.dim, [&](int64_t i, auto n) {
                 store(fused(load(dy + i, n), load(row + i, n), load(static_cast<const C*>(sums) + i, n)), sums + i, n);
               });
             });
    if (dbias)
      for_row<C>(args.dim, [&](int64_t i, auto n) {
        store(load(dy + i, n) + load(static_cast<const C*>(dbias) + i, n), dbias + i, n);
      });
  }
}

template struct ConvKernels<kThisIsa, float, float>;
template struct ConvKernels<kThisIsa, BFloat16, float>;
template struct ConvKernels<kThisIsa, double, double>;

}  // namespace weft::cpu
