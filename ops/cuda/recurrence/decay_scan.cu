// The element-wise recurrence y_t = a_t y_{t-1} + x_t with a_t = exp(g_t). Backward, with d_t = dy_t + a_{t+1} d_{t+1}: dx_t = d_t,
// dg_t = d_t a_t y_{t-1}. Tokens are cut into segments, a thread has one of one channel: first what a segment makes of zeros and the product
// of its decays, then what comes before each segment, then the elements. The first token of a document has the decay 0.
#include "ops/cuda/recurrence/chunk.cuh"

namespace weft::cuda {

namespace recurrence {

namespace {

constexpr int64_t kSegment = 64;  // tokens
constexpr int kBatch = 8;         // loaded before the first is used: a load would wait behind what was stored before it

template <class T>
struct Scan {
  cpu::DecayScanProblem p;
  int64_t segments;
  T *products, *sums;  // [B, segments, D]; sums: of a segment, then what comes before it
  T* y_before;         // backward: [B, T, D], y before each token

  // 0 if it is not wanted, or there are no data.
  __device__ __forceinline__ T at(const Operand& x, int64_t b, int64_t t, int64_t c, bool is_wanted) const {
    const int64_t place = b * x.batch_stride + t * x.token_stride + c;
    is_wanted = is_wanted && x.data;
    const BFloat16 narrow = load_if(static_cast<const BFloat16*>(x.data) + place, is_wanted && x.is_bf16);
    const T wide = load_if(static_cast<const T*>(x.data) + place, is_wanted && !x.is_bf16);
    return x.is_bf16 ? static_cast<T>(static_cast<float>(narrow)) : wide;
  }
  __device__ __forceinline__ void put(const Operand& x, int64_t b, int64_t t, int64_t c, T value) const {
    if (x.data) store(x, b * x.batch_stride + t * x.token_stride + c, value);
  }
  __device__ __forceinline__ T before(int64_t b, int64_t t, int64_t c, bool is_wanted) const {
    return load_if(y_before + ((b * p.tokens + t) * p.dim + c), is_wanted && y_before);
  }
};

// Tokens t, t + way, .. of one channel, `left` of them at most; those that are missing are padding. x is an operand of the problem.
template <class T>
struct Batch {
  Mark marks[kBatch];
  T decays[kBatch], x[kBatch];

  __device__ __forceinline__ Batch(const Scan<T>& s, const Operand& of, int64_t b, int64_t c, int64_t t, int64_t left,
                                   int way) {
#pragma unroll
    for (int n = 0; n < kBatch; ++n) {
      const bool is_there = n < left;
      const Mark mark = load_if(s.p.marks + (b * s.p.tokens + t + n * way), is_there && s.p.marks);
      marks[n] = s.p.marks || !is_there ? mark : Mark::token;
      decays[n] = s.at(s.p.log_decay, b, t + n * way, c, is_there);
      x[n] = s.at(of, b, t + n * way, c, is_there);
    }
#pragma unroll
    for (int n = 0; n < kBatch; ++n) decays[n] = marks[n] == Mark::first ? T(0) : decay_of(decays[n]);
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
    const int way = is_backward ? -1 : 1;
    for (int next = 0; first + next < last; next += kBatch) {
      const int step = made_here(next);
      const int64_t t = is_backward ? last - 1 - step : first + step;
      const Batch<T> tokens(s, is_backward ? s.p.dy : s.p.x, b, c, t, last - first - step, way);
#pragma unroll
      for (int n = 0; n < kBatch; ++n) {
        if (tokens.marks[n] == Mark::padding) continue;
        const T a = tokens.decays[n], x = tokens.x[n];
        product *= a;
        sum = is_backward ? a * (sum + x) : a * sum + x;
      }
    }
    s.products[i] = product, s.sums[i] = sum;
  });
}

// A thread per row and channel.
template <class T>
__global__ void __launch_bounds__(kThreads) join_segments(Scan<T> s, const T* given, T* end, bool is_backward) {
  for (int64_t i = thread_index(); i < s.p.batch * s.p.dim; i += thread_count()) {
    T y = given ? given[i] : T(0);
    const int64_t row = i / s.p.dim * s.segments, c = i % s.p.dim;
    for (int64_t first = 0; first < s.segments; first += kBatch) {
      T products[kBatch], sums[kBatch];
      auto place = [&](int n) {
        const int64_t step = first + n;
        return (row + (is_backward ? s.segments - 1 - step : step)) * s.p.dim + c;
      };
#pragma unroll
      for (int n = 0; n < kBatch; ++n) {
        products[n] = load_if(s.products + place(n), first + n < s.segments);
        sums[n] = load_if(s.sums + place(n), first + n < s.segments);
      }
#pragma unroll
      for (int n = 0; n < kBatch; ++n) {
        if (first + n >= s.segments) break;
        s.sums[place(n)] = y;
        y = products[n] * y + sums[n];
      }
    }
    if (end) end[i] = y;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) give_y(Scan<T> s) {
  for_segments(s, [&](int64_t i, int64_t b, int64_t c, int64_t first, int64_t last) {
    T y = s.sums[i];
    for (int step = 0; first + step < last; step += kBatch) {
      const int64_t begin = first + made_here(step);
      const Batch<T> tokens(s, s.p.x, b, c, begin, last - begin, 1);
#pragma unroll
      for (int n = 0; n < kBatch; ++n) {
        const int64_t t = begin + n;
        if (t >= last) break;
        const bool is_padding = tokens.marks[n] == Mark::padding;
        if (s.y_before) s.y_before[(b * s.p.tokens + t) * s.p.dim + c] = y;
        if (!is_padding) y = tokens.decays[n] * y + tokens.x[n];
        s.put(s.p.y, b, t, c, is_padding ? T(0) : y);
      }
    }
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads) give_gradients(Scan<T> s) {
  for_segments(s, [&](int64_t i, int64_t b, int64_t c, int64_t first, int64_t last) {
    T d = s.sums[i];
    for (int step = 0; last - step > first; step += kBatch) {
      const int64_t end = last - made_here(step);
      T y_before[kBatch];
#pragma unroll
      for (int n = 0; n < kBatch; ++n) y_before[n] = s.before(b, end - 1 - n, c, n < end - first);
      const Batch<T> tokens(s, s.p.dy, b, c, end - 1, end - first, -1);
#pragma unroll
      for (int n = 0; n < kBatch; ++n) {
        const int64_t t = end - 1 - n;
        if (t < first) break;
        const Mark m = tokens.marks[n];
        T dx = 0, dg = 0;
        if (m != Mark::padding) {
          d += tokens.x[n];
          dx = d;
          d *= tokens.decays[n];
          if (m != Mark::first) dg = d * y_before[n];
        }
        s.put(s.p.dx, b, t, c, dx), s.put(s.p.dlog_decay, b, t, c, dg);
      }
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
