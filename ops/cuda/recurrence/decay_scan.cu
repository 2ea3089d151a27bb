// The element-wise recurrence y_t = a_t y_{t-1} + x_t with a_t = exp(g_t). Backward, with d_t = dy_t + a_{t+1} d_{t+1}: dx_t = d_t,
// dg_t = d_t a_t y_{t-1}. Tokens are cut into segments, a thread has one of one channel: first what a segment makes of zeros and the product
// of its decays, then what comes before each segment, then the elements. The first token of a document has the decay 0.
#include "ops/cuda/recurrence/chunk.cuh"

namespace weft::cuda {

namespace recurrence {

namespace {

constexpr int64_t kSegment = 64;  // tokens

template <class T>
struct Scan {
  cpu::DecayScanProblem p;
  int64_t segments;
  T *products, *sums;  // [B, segments, D]; sums: of a segment, then what comes before it
  T* y_before;         // backward: [B, T, D], y before each token

  __device__ __forceinline__ T at(const Operand& x, int64_t b, int64_t t, int64_t c) const {
    return element<T>(x, b * x.batch_stride + t * x.token_stride + c);
  }
  __device__ __forceinline__ void put(const Operand& x, int64_t b, int64_t t, int64_t c, T value) const {
    if (x.data) store(x, b * x.batch_stride + t * x.token_stride + c, value);
  }
  __device__ __forceinline__ Mark mark(int64_t b, int64_t t) const {
    return p.marks ? p.marks[b * p.tokens + t] : Mark::token;
  }
  __device__ __forceinline__ T decay(int64_t b, int64_t t, int64_t c, Mark m) const {
    return m == Mark::first ? T(0) : decay_of(at(p.log_decay, b, t, c));
  }
};

// Calls f(row, channel, segment, first token, last) for the thread's items.
template <class T, class F>
__device__ __forceinline__ void for_segments(const Scan<T>& s, F&& f) {
  const int64_t items = s.p.batch * s.segments * s.p.dim;
  for (int64_t i = thread_index(); i < items; i += thread_count()) {
    const int64_t c = i % s.p.dim, n = i / s.p.dim % s.segments, b = i / s.p.dim / s.segments;
    f(i, b, c, n * kSegment, smaller(s.p.tokens, (n + 1) * kSegment));
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) sum_segments(Scan<T> s, bool is_backward) {
  for_segments(s, [&](int64_t i, int64_t b, int64_t c, int64_t first, int64_t last) {
    T sum = 0, product = 1;
    for (int64_t step = 0; step < last - first; ++step) {
      const int64_t t = is_backward ? last - 1 - step : first + step;
      const Mark m = s.mark(b, t);
      if (m == Mark::padding) continue;
      const T a = s.decay(b, t, c, m);
      product *= a;
      sum = is_backward ? a * (sum + (s.p.dy.data ? s.at(s.p.dy, b, t, c) : T(0))) : a * sum + s.at(s.p.x, b, t, c);
    }
    s.products[i] = product, s.sums[i] = sum;
  });
}

// A thread per row and channel.
template <class T>
__global__ void __launch_bounds__(kThreads) join_segments(Scan<T> s, const T* given, T* end, bool is_backward) {
  for (int64_t i = thread_index(); i < s.p.batch * s.p.dim; i += thread_count()) {
    T y = given ? given[i] : T(0);
    for (int64_t step = 0; step < s.segments; ++step) {
      const int64_t n = is_backward ? s.segments - 1 - step : step;
      const int64_t at = (i / s.p.dim * s.segments + n) * s.p.dim + i % s.p.dim;
      const T sum = s.sums[at];
      s.sums[at] = y;
      y = s.products[at] * y + sum;
    }
    if (end) end[i] = y;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) give_y(Scan<T> s) {
  for_segments(s, [&](int64_t i, int64_t b, int64_t c, int64_t first, int64_t last) {
    T y = s.sums[i];
    for (int64_t t = first; t < last; ++t) {
      const Mark m = s.mark(b, t);
      if (s.y_before) s.y_before[(b * s.p.tokens + t) * s.p.dim + c] = y;
      if (m != Mark::padding) y = s.decay(b, t, c, m) * y + s.at(s.p.x, b, t, c);
      s.put(s.p.y, b, t, c, m == Mark::padding ? T(0) : y);
    }
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads) give_gradients(Scan<T> s) {
  for_segments(s, [&](int64_t i, int64_t b, int64_t c, int64_t first, int64_t last) {
    T d = s.sums[i];
    for (int64_t t = last - 1; t >= first; --t) {
      const Mark m = s.mark(b, t);
      T dx = 0, dg = 0;
      if (m != Mark::padding) {
        if (s.p.dy.data) d += s.at(s.p.dy, b, t, c);
        dx = d;
        d *= s.decay(b, t, c, m);
        if (m != Mark::first) dg = d * s.y_before[(b * s.p.tokens + t) * s.p.dim + c];
      }
      s.put(s.p.dx, b, t, c, dx), s.put(s.p.dlog_decay, b, t, c, dg);
    }
  });
}

template <class T>
void scan(const cpu::DecayScanProblem& p, Device device, bool is_backward) {
  const std::string_view op = is_backward ? "decay_scan_backward" : "decay_scan";
  if (p.batch * p.dim == 0) return;
  Scan<T> s{.p = p, .segments = (p.tokens + kSegment - 1) / kSegment, .products = {}, .sums = {}, .y_before = {}};
  const int64_t each = p.batch * s.segments * p.dim, all = is_backward ? p.batch * p.tokens * p.dim : 0;
  Tensor memory = Tensor::empty({2 * each + all}, dtype_of<T>(), device);
  s.products = memory.mutable_data<T>(), s.sums = s.products + each;
  if (is_backward) s.y_before = s.sums + each;
  const dim3 segments(grid_of(each)), rows(grid_of(p.batch * p.dim)), threads(kThreads);
  cudaStream_t on = stream(device.index);
  launch(op, sum_segments<T>, segments, threads, 0, on, s, false);
  launch(op, join_segments<T>, rows, threads, 0, on, s, static_cast<const T*>(p.state),
         is_backward ? nullptr : static_cast<T*>(p.last_state), false);
  launch(op, give_y<T>, segments, threads, 0, on, s);
  if (!is_backward) return;
  launch(op, sum_segments<T>, segments, threads, 0, on, s, true);
  launch(op, join_segments<T>, rows, threads, 0, on, s, static_cast<const T*>(p.dlast_state), static_cast<T*>(p.dstate),
         true);
  launch(op, give_gradients<T>, segments, threads, 0, on, s);
}

}  // namespace

}  // namespace recurrence

void decay_scan_forward(const cpu::DecayScanProblem& p, DType wide, Device device) {
  if (wide == kF64) recurrence::scan<double>(p, device, false);
  else recurrence::scan<float>(p, device, false);
}
void decay_scan_backward(const cpu::DecayScanProblem& p, DType wide, Device device) {
  if (wide == kF64) recurrence::scan<double>(p, device, true);
  else recurrence::scan<float>(p, device, true);
}

}  // namespace weft::cuda
