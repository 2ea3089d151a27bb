// Backward by chunks, with the names of chunk.cuh and forward.cuh; dO of outputs, dS' of the state behind a chunk. Every chunk by itself:
//   du = P^T dO under D
// Then, from the last chunk to the first, in parts of the value columns:
//   du += (after k) dS';   dS = total dS' + (scale before q)^T dO  - keys_seen^T (beta du) for the delta rule
// Then every chunk by itself:
//   plain: dv = beta du        delta rule: dv = L^T (beta du),  dbeta_r = (du - M^T dv)_r e_r
//   dP = dO u^T,  dq = scale (dP k under D + before (dO S^T)),  dk as writer = dP^T (scale q) under D + after (u dS'^T)
//   delta rule: dM = -dv u^T, dk as reader = dM k under D - before (dv S^T), and as writer also dM^T k under D
//   dg: sums from the last row to r of q dq + k (dk as reader - dk as writer), which begin with sum_v dS' S';  of value channels: of
//   o dO - u du, which begin with sum_k dS' S'.  With decays of value channels before, after and D stand at the values.
#pragma once

#include "ops/cuda/recurrence/forward.cuh"

namespace weft::cuda::recurrence {

// du of the chunk's own outputs. Blocks are [B, H, chunks, parts].
template <class A>
__global__ void __launch_bounds__(kBlock) begin_du(const __grid_constant__ Work<typename A::T> w) {
  using T = typename A::T;
  const int64_t V = w.p.value_width, step = value_step(w);
  const Place place = place_of(w, (V + step - 1) / step);
  Chunk<T> chunk(w, shared_of<T>(), place.b, place.h, place.n);
  const int64_t v0 = place.part * step, columns = smaller(step, V - v0);
  Tile<A> tile;
  tile.clear();
  apply<A, true>(chunk, tile, v0, columns, chunk.is_of_values(), chunk.matrix(w.pairs),
                 [&](int r, int64_t j) { return chunk.dout(r, j); });
  tile.each([&](int i, int j, T x) {
    if (i < chunk.count && j < columns) w.du[chunk.token(i) * V + v0 + j] = x;
  });
}

// Gradients of the states before every chunk, and behind the last one.
template <class A>
__global__ void __launch_bounds__(kBlock) retreat_states(const __grid_constant__ Work<typename A::T> w) {
  using T = typename A::T;
  const int64_t K = w.p.key_width, V = w.p.value_width;
  const StateColumns at = state_columns(w);
  const int64_t v0 = at.first, columns = at.count;
  T* dstates = w.dstates + at.head * (w.chunks + 1) * K * V;
  copy_state(w, at, dstates + w.chunks * K * V,
             w.p.dlast_state ? static_cast<const T*>(w.p.dlast_state) + at.head * K * V : nullptr);
  Tile<A> tile;
  for (int n = w.chunks - 1; n >= 0; --n) {
    Chunk<T> chunk(w, shared_of<T>(), at.head / w.p.heads, at.head % w.p.heads, n);
    const T* dstate = chunk.state(w.dstates, 1);
    T* previous = chunk.state(w.dstates);
    tile.clear();
    multiply<A, Along::depth, Along::rows>(
        tile, chunk.s.strips, columns, K,
        [&](int i, int64_t c) { return chunk.k(i, c) * chunk.of_keys(w.after, i, c); },
        [&](int j, int64_t c) { return dstate[c * V + v0 + j]; });
    tile.each([&](int i, int j, T x) {
      if (i < chunk.count && j < columns) w.du[chunk.token(i) * V + v0 + j] += x * chunk.of_values(w.after, i, v0 + j);
    });
    for (int64_t k0 = 0; k0 < K; k0 += kRows) {
      tile.clear();
      multiply<A, Along::rows, Along::rows>(
          tile, chunk.s.strips, columns, chunk.count,
          [&](int c, int64_t i) {
            const int r = static_cast<int>(i);
            return k0 + c < K ? chunk.q(r, k0 + c) * chunk.of_keys(w.before, r, k0 + c) : T(0);
          },
          [&](int j, int64_t i) {
            const int r = static_cast<int>(i);
            return chunk.dout(r, v0 + j) * chunk.of_values(w.before, r, v0 + j);
          });
      if (w.is_delta)
        multiply<A, Along::rows, Along::rows>(
            tile, chunk.s.strips, columns, chunk.count,
            [&](int c, int64_t i) {
              return k0 + c < K ? -chunk.kept(w.keys_seen, K, static_cast<int>(i), k0 + c) : T(0);
            },
            [&](int j, int64_t i) { return chunk.beta_du(static_cast<int>(i), v0 + j); });
      tile.each([&](int c, int j, T sum) {
        if (k0 + c >= K || j >= columns) return;
        const int64_t element = (k0 + c) * V + v0 + j;
        previous[element] = chunk.total(k0 + c, v0 + j) * dstate[element] + sum;
      });
    }
  }
  __syncthreads();
  if (w.p.dstate) copy_state(w, at, static_cast<T*>(w.p.dstate) + at.head * K * V, dstates);
}

// dv and dbeta. Blocks are [B, H, chunks].
template <class A>
__global__ void __launch_bounds__(kBlock) give_values(const __grid_constant__ Work<typename A::T> w) {
  using T = typename A::T;
  const int64_t V = w.p.value_width;
  const Place place = place_of(w, 1);
  Chunk<T> chunk(w, shared_of<T>(), place.b, place.h, place.n);
  const int thread = static_cast<int>(threadIdx.x);
  const Operand to = w.p.dv.at(place.b, place.h);
  auto give = [&](int r, int64_t j, T x) {
    if (to.data) store(to, (chunk.first + r) * to.token_stride + j, x);
  };
  if (!w.is_delta) {
    for (int64_t i = thread; i < chunk.count * V; i += kBlock) {
      const int r = static_cast<int>(i / V);
      give(r, i % V, chunk.beta_du(r, i % V));
    }
    return;
  }
  const T *inverse = chunk.matrix(w.inverse), *strict = chunk.matrix(w.strict);
  T(&products)[kRows][kDepth + 1] = chunk.s.strips.at[0];
  T dbeta = 0;  // of row `thread`
  Tile<A> tile;
  for (int64_t v0 = 0; v0 < V; v0 += kColumns) {
    const int64_t columns = smaller(kColumns, V - v0);
    tile.clear();
    multiply<A, Along::rows, Along::rows>(
        tile, chunk.s.strips, columns, chunk.count, [&](int i, int64_t r) { return inverse[r * kRows + i]; },
        [&](int j, int64_t r) { return chunk.beta_du(static_cast<int>(r), v0 + j); });
    tile.each([&](int r, int j, T x) {
      if (r >= chunk.count || j >= columns) return;
      w.dv[chunk.token(r) * V + v0 + j] = x;
      give(r, v0 + j, x);
    });
    tile.clear();
    multiply<A, Along::rows, Along::rows>(
        tile, chunk.s.strips, columns, chunk.count, [&](int i, int64_t r) { return strict[r * kRows + i]; },
        [&](int j, int64_t r) { return chunk.dv(static_cast<int>(r), v0 + j); });
    __syncthreads();
    tile.each([&](int r, int j, T x) {
      const bool is_there = r < chunk.count && j < columns;
      products[r][j] = is_there ? (chunk.kept(w.du, V, r, v0 + j) - x) * chunk.e(r, v0 + j) : T(0);
    });
    __syncthreads();
    if (thread < kRows)
      for (int j = 0; j < columns; ++j) dbeta += products[thread][j];
  }
  const Operand of_beta = w.p.dbeta.at(place.b, place.h);
  if (!of_beta.data || thread >= chunk.count) return;
  const Operand writes = w.p.writes.at(place.b, place.h);
  const int64_t t = chunk.first + thread;
  const bool is_writing =
      chunk.is_there(thread) && (!writes.data || static_cast<const bool*>(writes.data)[t * writes.token_stride]);
  store(of_beta, t * of_beta.token_stride, is_writing ? dbeta : T(0));
}

// Gradients of q, and of k as reader and as writer, for every value head. Blocks are [B, H, chunks].
template <class A>
__global__ void __launch_bounds__(kBlock) give_keys(const __grid_constant__ Work<typename A::T> w) {
  using T = typename A::T;
  const int64_t K = w.p.key_width, V = w.p.value_width;
  const Place place = place_of(w, 1);
  Chunk<T> chunk(w, shared_of<T>(), place.b, place.h, place.n);
  Strips<T>& strips = chunk.s.strips;
  const bool has_channels = w.p.decay == Decay::key;
  if (w.p.decay == Decay::scalar) load_factors(chunk);
  T *dpairs = chunk.matrix(w.dpairs), *dstrict = w.is_delta ? chunk.matrix(w.dstrict) : nullptr;
  auto dout = [&](int r, int64_t j) { return chunk.dout(r, j); };
  auto u = [&](int i, int64_t j) { return chunk.u(i, j); };
  Tile<A> tile;
  scores<A, false>(chunk, tile, V, chunk.is_of_values(), dout, u);
  tile.each([&](int r, int i, T x) { dpairs[r * kRows + i] = x; });
  if (w.is_delta) {
    scores<A, true>(
        chunk, tile, V, false, [&](int r, int64_t j) { return chunk.dv(r, j); }, u);
    tile.each([&](int r, int i, T x) { dstrict[r * kRows + i] = -x; });
  }
  const T *state = chunk.state(w.states), *dstate = chunk.state(w.dstates, 1);
  const int64_t step = has_channels ? kStrip : kColumns;
  for (int64_t c0 = 0; c0 < K; c0 += step) {
    const int64_t columns = smaller(step, K - c0);
    // tile = of_values x (r, j) times a state, summed over its value channels, times factors of keys.
    auto times_state = [&](const T* of, const T* factors, T sign, auto&& x) {
      tile.clear();
      multiply<A, Along::depth, Along::depth>(
          tile, strips, columns, V, [&](int r, int64_t j) { return x(r, j) * chunk.of_values(factors, r, j); },
          [&](int c, int64_t j) { return of[(c0 + c) * V + j]; });
      tile.each([&](int r, int c, T& y) {
        if (c < columns) y *= sign * chunk.of_keys(factors, r, c0 + c);
      });
    };
    auto put = [&](T* to) {
      tile.each([&](int r, int c, T y) {
        if (r < chunk.count && c < columns) to[chunk.token(r) * K + c0 + c] = y;
      });
    };
    auto key = [&](int i, int64_t c) { return chunk.k(i, c); };
    times_state(state, w.before, T(1), dout);
    apply<A, false>(chunk, tile, c0, columns, has_channels, dpairs, key);
    put(w.dq);
    times_state(dstate, w.after, T(1), u);
    apply<A, true>(chunk, tile, c0, columns, has_channels, dpairs, [&](int r, int64_t c) { return chunk.q(r, c); });
    if (w.is_delta) apply<A, true>(chunk, tile, c0, columns, has_channels, dstrict, key);
    put(w.dwriter);
    if (!w.is_delta) continue;
    times_state(state, w.before, T(-1), [&](int r, int64_t j) { return chunk.dv(r, j); });
    apply<A, false>(chunk, tile, c0, columns, has_channels, dstrict, key);
    put(w.dreader);
  }
}

// du, and the gradients of states.
template <class A>
void find_state_gradients(Prepared<A>& prepared) {
  Work<typename A::T>& w = prepared.w;
  w.du = prepared.take(prepared.tokens() * w.p.value_width), w.dstates = prepared.take(prepared.states());
  prepared.launch(begin_du<A>, prepared.chunks() * value_parts(w));
  prepared.launch(retreat_states<A>, prepared.state_blocks());
}

template <class A>
void Chunks<A>::backward(const cpu::RecurrenceProblem& p) {
  Prepared<A> prepared("recur_backward", p);
  Work<typename A::T>& w = prepared.w;
  const int64_t of_values = prepared.tokens() * p.value_width, of_keys = prepared.tokens() * p.key_width;
  const bool wants_decay = p.dlog_decay.data != nullptr, is_of_values = p.decay == Decay::value;
  if (w.is_delta) w.dv = prepared.take(of_values);
  prepared.enter();
  prepared.find_states();
  find_state_gradients(prepared);
  prepared.launch(give_values<A>, prepared.chunks());
  if (p.dq.data || p.dk.data || (wants_decay && !is_of_values)) {
    const int64_t of_pairs = prepared.chunks() * kRows * kRows;
    w.dpairs = prepared.take(of_pairs);
    if (w.is_delta) w.dstrict = prepared.take(of_pairs), w.dreader = prepared.take(of_keys);
    w.dq = prepared.take(of_keys), w.dwriter = prepared.take(of_keys);
    prepared.launch(give_keys<A>, prepared.chunks());
  }
  if (wants_decay && is_of_values) {
    w.out = prepared.take(of_values);
    prepared.read(w.out);
  }
  finish_backward(w);
}

// Without states, which it does not depend on.
template <class A>
void Chunks<A>::state_gradient(const cpu::RecurrenceProblem& p) {
  Prepared<A> prepared("recur_state_gradient", p);
  prepared.enter();
  find_state_gradients(prepared);
}

}  // namespace weft::cuda::recurrence
