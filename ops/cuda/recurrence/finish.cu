// Two passes: a state is what it was from zeros, and what the decays leave of the state that came in. The end of backward: gradients of decays, per chunk: sums from the last row to r of q dq + k (dk as reader - dk as writer), or o dO - u du
// for decays of value channels, which begin with dS' S' behind the chunk. Then dq and dk, summed over the value heads of a group.
#include "ops/cuda/recurrence/finish.cuh"

namespace weft::cuda::recurrence {

namespace {

constexpr int kBatch =
    8;  // numbers loaded before the first is used: a load would wait behind what was stored before it

// The reverse sums of one channel.
template <class T, class E, class F>
__device__ __forceinline__ void give_sums(const Chunk<T, E>& chunk, T sum, int64_t channel, F&& share) {
  const Operand to = chunk.w.p.dlog_decay.at(chunk.b, chunk.h);
  for (int last = chunk.count - 1; last >= 0; last -= kBatch) {
    T shares[kBatch];
#pragma unroll
    for (int n = 0; n < kBatch; ++n) shares[n] = share(last < n ? 0 : last - n);
#pragma unroll
    for (int n = 0; n < kBatch; ++n) {
      const int r = last - n;
      if (r < 0) break;
      sum += shares[n];
      const auto mark = static_cast<Mark>(chunk.s.marks[r]);
      if (mark == Mark::first) sum = 0;
      store(to, (chunk.first + r) * to.token_stride + channel, mark == Mark::token ? sum : T(0));
    }
  }
}

// Blocks are [B, H, chunks].
template <class T, class E>
__global__ void __launch_bounds__(kBlock) give_decays(const __grid_constant__ Work<T> w) {
  const Place place = place_of(w, 1);
  Chunk<T, E> chunk(w, shared_of<T>(), place.b, place.h, place.n);
  const int64_t K = w.p.key_width, V = w.p.value_width;
  const T *state = chunk.state(w.states, 1), *dstate = chunk.state(w.dstates, 1);
  const int thread = static_cast<int>(threadIdx.x), warp = warp_of(), lane = lane_of();
  auto of_keys = [&](int r, int64_t c, bool is_wanted) {
    const T dwriter = chunk.kept(w.dwriter, K, r, c, is_wanted);
    const T dreader = chunk.kept(w.dreader, K, r, c, is_wanted && w.is_delta);
    return chunk.q(r, c, is_wanted) * chunk.kept(w.dq, K, r, c, is_wanted) +
           chunk.k(r, c, is_wanted) * (dreader - dwriter);
  };
  if (chunk.is_of_values()) {
    for (int64_t j = thread; j < V; j += kBlock) {
      T sum = 0;
      for (int64_t c = 0; c < K; ++c) sum += dstate[c * V + j] * state[c * V + j];
      give_sums(chunk, sum, j, [&](int r) {
        return chunk.kept(w.out, V, r, j) * chunk.dout(r, j) - chunk.u(r, j) * chunk.kept(w.du, V, r, j);
      });
    }
    return;
  }
  if (w.p.decay == Decay::key) {
    // A strip of channels at a time: a warp adds up each one's row of the states. All warps make the shares, a lane of a channel, so that the
    // one that adds them up reads shared memory alone. The order of the sums is the same on any device.
    constexpr int kWarps = kBlock / 32, kRowsAtATime = 4;
    static_assert(kStrip == 32 && kStrip <= kRows && kRows % (kWarps * kRowsAtATime) == 0);
    T* first = chunk.s.beta;  // not needed any more
    T(&shares)[kRows][kStrip + 1] = chunk.s.before;
    for (int64_t c0 = 0; c0 < K; c0 += kStrip) {
      const int channels = static_cast<int>(smaller(kStrip, K - c0));
      __syncthreads();
      for (int c = warp; c < channels; c += kBlock / 32) {
        T sum = 0;
        for (int64_t j = lane; j < V; j += 32) sum += dstate[(c0 + c) * V + j] * state[(c0 + c) * V + j];
        sum = warp_reduce(sum, AddOf{});
        if (lane == 0) first[c] = sum;
      }
#pragma unroll 1
      for (int row = warp; row < chunk.count; row += kWarps * kRowsAtATime) {
        T x[kRowsAtATime];
#pragma unroll
        for (int n = 0; n < kRowsAtATime; ++n) x[n] = of_keys(row + n * kWarps, c0 + lane, lane < channels);
#pragma unroll
        for (int n = 0; n < kRowsAtATime; ++n) shares[row + n * kWarps][lane] = x[n];
      }
      __syncthreads();
      if (thread < channels) give_sums(chunk, first[thread], c0 + thread, [&](int r) { return shares[r][thread]; });
    }
    return;
  }
  T sum = 0;
  for (int64_t i = thread; i < K * V; i += kBlock) sum += dstate[i] * state[i];
  sum = block_sum(sum);
  for (int r = warp; r < chunk.count; r += kBlock / 32) {
    T share = 0;
    for (int64_t c = lane; c < K; c += 32) share += of_keys(r, c, true);
    share = warp_reduce(share, AddOf{});
    if (lane == 0) chunk.s.beta[r] = share;
  }
  __syncthreads();
  if (thread == 0) give_sums(chunk, sum, 0, [&](int r) { return chunk.s.beta[r]; });
}

// Of the state's key channels, or value channels if those decay.
template <class T>
__host__ __device__ int64_t kept_width(const Work<T>& w) {
  return w.p.decay == Decay::value ? w.p.value_width : w.p.key_width;
}
// A thread per channel of a head.
template <class T>
__global__ void __launch_bounds__(kThreads) multiply_decays(const __grid_constant__ Work<T> w) {
  const int64_t width = kept_width(w), heads = w.p.batch * w.p.heads;
  T* to = static_cast<T*>(w.p.kept_decays);
  for (int64_t i = thread_index(); i < heads * width; i += thread_count()) {
    const int64_t head = i / width, c = i % width, channel = w.p.decay == Decay::scalar ? 0 : c;
    T product = 1;
    for (int64_t first = 0; first <= w.chunks; first += kBatch) {
      T totals[kBatch];
#pragma unroll
      for (int n = 0; n < kBatch; ++n)
        totals[n] = load_if(w.total + ((head * w.chunks + first + n) * w.decay_width + channel), first + n < w.chunks);
#pragma unroll
      for (int n = 0; n < kBatch; ++n) {
        if (first + n > w.chunks) break;
        to[(head * (w.chunks + 1) + first + n) * width + c] = product;
        product *= totals[n];
      }
    }
  }
}
template <class T>
__global__ void __launch_bounds__(kThreads) add_states(const __grid_constant__ Work<T> w) {
  const int64_t K = w.p.key_width, V = w.p.value_width, width = kept_width(w), blocks = w.chunks + 1;
  const int64_t items = w.p.batch * w.p.heads * blocks * K * V;
  const auto *kept = static_cast<const T*>(w.p.kept_states), *decays = static_cast<const T*>(w.p.kept_decays),
             *given = static_cast<const T*>(w.p.state);
  for (int64_t i = thread_index(); i < items; i += thread_count()) {
    const int64_t j = i % V, c = i / V % K, n = i / V / K % blocks, head = i / V / K / blocks,
                  at = (head * K + c) * V + j;
    const T decay = decays[(head * blocks + n) * width + (w.p.decay == Decay::value ? j : c)];
    const T state = given ? kept[i] + decay * given[at] : kept[i];
    w.states[i] = state;
    if (n == w.chunks && w.p.last_state) static_cast<T*>(w.p.last_state)[at] = state;
  }
}

// to[b, t, g, c] = scale times the sum over the heads of group g of x and y, [B, H, T, K]; y may be null.
template <class T>
__global__ void __launch_bounds__(kThreads)
    sum_groups(const __grid_constant__ Work<T> w, Operand to, const T* x, const T* y, T scale) {
  const int64_t K = w.p.key_width, tokens = w.p.tokens, groups = w.p.key_heads;
  const int64_t items = w.p.batch * groups * tokens * K;
  for (int64_t item = thread_index(); item < items; item += thread_count()) {
    const int64_t c = item % K, t = item / K % tokens, g = item / K / tokens % groups, b = item / K / tokens / groups;
    T sum = 0;
    for (int64_t i = 0; i < w.group; ++i) {
      const int64_t at = ((b * w.p.heads + g * w.group + i) * tokens + t) * K + c;
      sum += x[at];
      if (y) sum += y[at];
    }
    store(to.at(b, g), t * to.token_stride + c, scale * sum);
  }
}

}  // namespace

template <class T>
void finish_backward(const Work<T>& w) {
  constexpr std::string_view op = "recur_backward";
  const int64_t blocks = w.p.batch * w.p.heads * w.chunks;
  cudaStream_t s = stream(w.p.device);
  if (w.p.dlog_decay.data) {
    auto* give = give_decays<T, T>;
    if constexpr (std::is_same_v<T, float>)
      if (w.p.v.is_bf16) give = give_decays<T, BFloat16>;
    launch(op, give, dim3(static_cast<unsigned>(blocks)), dim3(kBlock), sizeof(Shared<T>), s, w);
  }
  const unsigned grid = grid_of(w.p.batch * w.p.key_heads * w.p.tokens * w.p.key_width);
  if (w.p.dq.data)
    launch(op, sum_groups<T>, dim3(grid), dim3(kThreads), 0, s, w, w.p.dq, static_cast<const T*>(w.dq),
           static_cast<const T*>(nullptr), static_cast<T>(w.p.scale));
  if (w.p.dk.data)
    launch(op, sum_groups<T>, dim3(grid), dim3(kThreads), 0, s, w, w.p.dk, static_cast<const T*>(w.dwriter),
           static_cast<const T*>(w.is_delta ? w.dreader : nullptr), T(1));
}

template <class T>
void keep_decays(const Work<T>& w) {
  const int64_t n = w.p.batch * w.p.heads * kept_width(w);
  launch("recur_states", multiply_decays<T>, dim3(grid_of(n)), dim3(kThreads), 0, stream(w.p.device), w);
}

template <class T>
void correct_states(const Work<T>& w) {
  const int64_t n = w.p.batch * w.p.heads * (w.chunks + 1) * w.p.key_width * w.p.value_width;
  launch("recur", add_states<T>, dim3(grid_of(n)), dim3(kThreads), 0, stream(w.p.device), w);
}

template void keep_decays(const Work<float>&);
template void keep_decays(const Work<double>&);
template void correct_states(const Work<float>&);
template void correct_states(const Work<double>&);
template void finish_backward(const Work<float>&);
template void finish_backward(const Work<double>&);

}  // namespace weft::cuda::recurrence
