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
__global__ void __launch_bounds__(kBlock, kBlocks<typename A::T>)
    begin_du(const __grid_constant__ Work<typename A::T> w) {
  using T = typename A::T;
  const int64_t V = w.p.value_width, step = value_step(w);
  const Place place = place_of(w, value_parts(w));
  ChunkOf<A> chunk(w, shared_of<T>(), place.b, place.h, place.n);
  const int64_t v0 = place.part * step, columns = smaller(step, V - v0);
  Tile<A> tile;
  tile.clear();
  apply<A, true>(chunk, tile, v0, columns, chunk.is_of_values(), chunk.matrix(w.pairs),
                 [&](int r, int64_t j, bool is_wanted) { return chunk.dout(r, j, is_wanted); });
  tile.each([&](int i, int j, T x) {
    if (i < chunk.count && j < columns) w.du[chunk.token(i) * V + v0 + j] = x;
  });
}

// Gradients of the states before every chunk, and behind the last one.
template <class A>
__global__ void __launch_bounds__(kBlock, kBlocks<typename A::T>)
    retreat_states(const __grid_constant__ Work<typename A::T> w) {
  using T = typename A::T;
  const int64_t K = w.p.key_width, V = w.p.value_width;
  const StateColumns at = state_columns(w);
  const int64_t v0 = at.first, columns = at.count;
  T* dstates = w.dstates + at.head * (w.chunks + 1) * K * V;
  copy_state(w, at, dstates + w.chunks * K * V,
             w.p.dlast_state ? static_cast<const T*>(w.p.dlast_state) + at.head * K * V : nullptr);
  Tile<A> tile;
  for (int n = w.chunks - 1; n >= 0; --n) {
    const int head = made_here(static_cast<int>(at.head)), heads = static_cast<int>(w.p.heads);
    ChunkOf<A> chunk(w, shared_of<T>(), head / heads, head % heads, n);
    const T* dstate = chunk.state(w.dstates, 1);
    T* previous = chunk.state(w.dstates);
    tile.clear();
    multiply<A, Along::depth, Along::rows>(
        tile, chunk.s.strips, columns, K,
        [&](int i, int64_t c, bool is_wanted) {
          return chunk.k(i, c, is_wanted) * chunk.of_keys(w.after, i, c, is_wanted);
        },
        [&](int j, int64_t c, bool is_wanted) { return load_if(dstate + (c * V + v0 + j), is_wanted); });
    tile.each(
        columns,
        [&](int i, int j, T& x) {
          const bool is_there = j < columns;
          x = chunk.kept(w.du, V, i, v0 + j, is_there) + x * chunk.of_values(w.after, i, v0 + j, is_there);
        },
        [&](int i, int j, T x) {
          if (i < chunk.count && j < columns) w.du[chunk.token(i) * V + v0 + j] = x;
        });
    for (int64_t k0 = 0; k0 < K; k0 += kRows) {
      tile.clear();
      multiply<A, Along::rows, Along::rows>(
          tile, chunk.s.strips, columns, chunk.count,
          [&](int c, int64_t i, bool is_wanted) {
            const int r = static_cast<int>(i);
            is_wanted = is_wanted && k0 + c < K;
            return chunk.q(r, k0 + c, is_wanted) * chunk.of_keys(w.before, r, k0 + c, is_wanted);
          },
          [&](int j, int64_t i, bool is_wanted) {
            const int r = static_cast<int>(i);
            return chunk.dout(r, v0 + j, is_wanted) * chunk.of_values(w.before, r, v0 + j, is_wanted);
          });
      if (w.is_delta)
        multiply<A, Along::rows, Along::rows>(
            tile, chunk.s.strips, columns, chunk.count,
            [&](int c, int64_t i, bool is_wanted) {
              return -chunk.kept(w.keys_seen, K, static_cast<int>(i), k0 + c, is_wanted && k0 + c < K);
            },
            [&](int j, int64_t i, bool is_wanted) { return chunk.beta_du(static_cast<int>(i), v0 + j, is_wanted); });
      give_state(chunk, tile, at, k0, previous, dstate);
    }
  }
  __syncthreads();
  if (w.p.dstate) copy_state(w, at, static_cast<T*>(w.p.dstate) + at.head * K * V, dstates);
}

// dv and dbeta. Blocks are [B, H, chunks].
template <class A>
__global__ void __launch_bounds__(kBlock, kBlocks<typename A::T>)
    give_values(const __grid_constant__ Work<typename A::T> w) {
  using T = typename A::T;
  const int64_t V = w.p.value_width;
  const Place place = place_of(w, 1);
  ChunkOf<A> chunk(w, shared_of<T>(), place.b, place.h, place.n);
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
        tile, chunk.s.strips, columns, chunk.count,
        [&](int i, int64_t r, bool is_wanted) { return load_if(inverse + (r * kRows + i), is_wanted); },
        [&](int j, int64_t r, bool is_wanted) { return chunk.beta_du(static_cast<int>(r), v0 + j, is_wanted); });
    tile.each([&](int r, int j, T x) {
      if (r >= chunk.count || j >= columns) return;
      w.dv[chunk.token(r) * V + v0 + j] = x;
      give(r, v0 + j, x);
    });
    tile.clear();
    multiply<A, Along::rows, Along::rows>(
        tile, chunk.s.strips, columns, chunk.count,
        [&](int i, int64_t r, bool is_wanted) { return load_if(strict + (r * kRows + i), is_wanted); },
        [&](int j, int64_t r, bool is_wanted) { return chunk.dv(static_cast<int>(r), v0 + j, is_wanted); });
    __syncthreads();
    tile.each(
        columns,
        [&](int r, int j, T& x) {
          const bool is_there = r < chunk.count && j < columns;
          const T du = chunk.kept(w.du, V, r, v0 + j, is_there), e = chunk.kept(w.errors, V, r, v0 + j, is_there);
          x = is_there ? (du - x) * e : T(0);
        },
        [&](int r, int j, T x) { products[r][j] = x; });
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

// Gradients of q, and of k as reader and as writer, for every value head. Blocks are [B, H, chunks]. Plain arithmetic needs the registers of
// two blocks.
template <class A>
__global__ void __launch_bounds__(kBlock, A::kRounds ? kBlocks<typename A::T> : 1)
    give_keys(const __grid_constant__ Work<typename A::T> w) {
  using T = typename A::T;
  const int64_t K = w.p.key_width, V = w.p.value_width;
  const Place place = place_of(w, 1);
  ChunkOf<A> chunk(w, shared_of<T>(), place.b, place.h, place.n);
  Strips<T>& strips = chunk.s.strips;
  const bool has_channels = w.p.decay == Decay::key;
  if (w.p.decay == Decay::scalar) load_factors(chunk);
  T *dpairs = chunk.matrix(w.dpairs), *dstrict = w.is_delta ? chunk.matrix(w.dstrict) : nullptr;
  auto dout = [&](int r, int64_t j, bool is_wanted) { return chunk.dout(r, j, is_wanted); };
  auto u = [&](int i, int64_t j, bool is_wanted) { return chunk.u(i, j, is_wanted); };
  auto dv = [&](int r, int64_t j, bool is_wanted) { return chunk.dv(r, j, is_wanted); };
  Tile<A> tile;
  scores<A, false>(chunk, tile, V, chunk.is_of_values(), dout, u);
  tile.each([&](int r, int i, T x) { dpairs[r * kRows + i] = x; });
  if (w.is_delta) {
    scores<A, true>(chunk, tile, V, false, dv, u);
    tile.each([&](int r, int i, T x) { dstrict[r * kRows + i] = -x; });
  }
  const T *state = chunk.state(w.states), *dstate = chunk.state(w.dstates, 1);
  const int width = static_cast<int>(K), step = has_channels ? kStrip : kColumns;
  for (int c0 = 0; c0 < width; c0 += step) {
    const int columns = static_cast<int>(smaller(step, width - c0));
    // tile = of_values x (r, j) times a state, summed over its value channels, times factors of keys.
    auto times_state = [&](const T* of, const T* factors, T sign, auto&& x) {
      tile.clear();
      multiply<A, Along::depth, Along::depth>(
          tile, strips, columns, V,
          [&](int r, int64_t j, bool is_wanted) {
            return x(r, j, is_wanted) * chunk.of_values(factors, r, j, is_wanted);
          },
          [&](int c, int64_t j, bool is_wanted) { return load_if(of + ((c0 + c) * V + j), is_wanted); });
      if (!has_channels) return tile.scale_rows([&](int r) { return sign * chunk.of_keys(factors, r, 0); });
      tile.each(
          columns, [&](int r, int c, T& y) { y *= sign * chunk.of_keys(factors, r, c0 + c, c < columns); },
          [](int, int, T) {});
    };
    auto put = [&](T* to) {
      tile.each([&](int r, int c, T y) {
        if (r < chunk.count && c < columns) to[chunk.token(r) * K + c0 + c] = y;
      });
    };
    auto key = [&](int i, int64_t c, bool is_wanted) { return chunk.k(i, c, is_wanted); };
    times_state(state, w.before, T(1), dout);
    apply<A, false>(chunk, tile, c0, columns, has_channels, dpairs, key);
    put(w.dq);
    times_state(dstate, w.after, T(1), u);
    apply<A, true>(chunk, tile, c0, columns, has_channels, dpairs,
                   [&](int r, int64_t c, bool is_wanted) { return chunk.q(r, c, is_wanted); });
    if (w.is_delta) apply<A, true>(chunk, tile, c0, columns, has_channels, dstrict, key);
    put(w.dwriter);
    if (!w.is_delta) continue;
    times_state(state, w.before, T(-1), dv);
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
