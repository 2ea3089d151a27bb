// The chunkwise recurrence with a decay of value channels: the dual of key channels (Zhang et al., 2409.07146, first pass). Per block, with
// A(r, i) = scale q_r k_i for i <= r and D = a_{i+1}..a_r per value channel:
//   O = a_0..a_r (scale Q S) + A V under D,   S' = S Diag(a_0..a_end) + K^T (a_{r+1}..a_end V)
// Backward, with dL = a_0..a_r dO:
//   dA(r, i) = dO_r (D v_i),  dQ = scale (dA K + dL S^T),  dK = dA^T Q + (a_{r+1}..a_end V) dS'^T
//   dV = A^T dO under D + a_{r+1}..a_end (K dS'),   dS = dS' Diag(a_0..a_end) + Q^T dL
//   dg: sums from the last row to r of o do - v dv, which begin with sum_k dS' S'.
#pragma once

#include "ops/cpu/recurrence/two_passes.h"

namespace weft::cpu {
namespace {

template <class T>
class ValueSide : public Side<T> {
 public:
  using Side<T>::Side;

  void forward(const Heads& heads) {
    carve(scratch(carve(nullptr, heads.count(), false)), heads.count(), false);
    for_heads(heads, [&](const HeadView<T>& head) { head.load_state(p.state, state, z.K); });
    for (int64_t n = 0; n < z.blocks; ++n)
      for_heads(heads, [&](const HeadView<T>& head) {
        if (head.is_kept(n * z.block)) head.load_kept(n * z.block / p.kept_block, state, z.K);
        enter(head, n);
        if (p.out.data) {
          read(head);
          store_rows(p.out.at(head.b, head.h), first, count, p.value_width, out, T(1), false);
        }
        if (!head.is_kept(first + z.block)) next_state();
      });
    for_heads(heads, [&](const HeadView<T>& head) { head.store_state(p.last_state, state); });
  }

  // `states` has room for the states before and behind each block of each head.
  void backward(const Heads& heads, T* states) {
    carve(scratch(carve(nullptr, heads.count(), true)), heads.count(), true);
    const int64_t each = z.K * z.V;
    auto behind = [&](const HeadView<T>& head, int64_t n) {
      return Matrix<T>{states + ((head.h - heads.first) * (z.blocks + 1) + n + 1) * each, z.V};
    };
    for_heads(heads, [&](const HeadView<T>& head) {
      head.load_state(p.state, state, z.K);
      std::copy_n(state.data, each, behind(head, -1).data);
      head.load_state(p.dlast_state, dstate, z.K);
    });
    for (int64_t n = 0; n < z.blocks; ++n)
      for_heads(heads, [&](const HeadView<T>& head) {
        if (head.load_behind(n, z, behind(head, n), state)) return;
        enter(head, n);
        next_state();
        std::copy_n(state.data, each, behind(head, n).data);
      });
    for (int64_t n = z.blocks - 1; n >= 0; --n)
      for_heads(heads, [&](const HeadView<T>& head) {
        state = behind(head, n - 1);
        enter(head, n, n - 1);
        read(head);
        load_dout(head);
        gradients();
        if (p.dlog_decay.data) decay_gradients(head, behind(head, n));
        give(head);
        previous_state();
      });
    for_heads(heads, [&](const HeadView<T>& head) {
      if (p.dstate) head.store_state(p.dstate, dstate);
    });
  }

 private:
  friend struct TwoPasses;
  using typename Side<T>::M;
  using Side<T>::p, Side<T>::z, Side<T>::first, Side<T>::count, Side<T>::next, Side<T>::state, Side<T>::dstate,
      Side<T>::dout;
  using Side<T>::state_of_heads, Side<T>::dstate_of_heads, Side<T>::for_heads, Side<T>::begin, Side<T>::load_dout;

  size_t carve(std::byte* base, int64_t heads, bool is_backward) {
    Carver c(base);
    auto take = [&](int64_t rows, int64_t width) { return take_matrix<T>(c, rows, width); };
    state_of_heads = c.take<T>(heads * z.K * z.V);
    dstate_of_heads = c.take<T>(is_backward ? heads * z.K * z.V : 0);
    q = take(z.C, z.K), k = take(z.C, z.K), v = take(z.C, z.V), kept = take(z.C, z.V), kt = take(z.K, z.C);
    weights = take(z.C, z.C), out = take(z.C, z.V);
    alpha = take(z.C, z.V), before = take(z.C, z.V), after = take(z.C, z.V);
    total = c.take<T>(z.V);
    if (is_backward) {
      dout = take(z.C, z.V), dlocal = take(z.C, z.V), dv = take(z.C, z.V);
      dweights = take(z.C, z.C), dq = take(z.C, z.K), dk = take(z.C, z.K);
      state_t = take(z.V, z.K), dstate_t = take(z.V, z.K);
      sums = c.take<T>(z.V), lanes = c.take<T>(z.V * kLanes<T>);
    }
    return c.used();
  }

  void enter(const HeadView<T>& head, int64_t block) { enter(head, block, block + 1); }
  [[gnu::noinline]] void enter(const HeadView<T>& head, int64_t block, int64_t next_block) {
    begin(block, next_block);
    head.fetch_rows(head.k, next, z.block, p.key_width);
    head.fetch_rows(head.v, next, z.block, p.value_width);
    head.load_rows(head.k, first, count, p.key_width, T(1), k, z.C);
    head.load_values(first, count, v, z.C);
    decays(head);
    multiply_rows(v, after, kept, z.C);
  }
  void decays(const HeadView<T>& head) {
    head.load_decays(first, count, p.value_width, alpha, z.C);
    head.fetch_rows(head.log_decay, next, z.block, p.value_width);
    running_products(alpha, z.C, before, after);
    std::copy_n(before.row(z.C - 1), z.V, total);
  }

  // weights = A and out = O.
  [[gnu::noinline]] void read(const HeadView<T>& head) {
    head.load_rows(head.q, first, count, p.key_width, static_cast<T>(p.scale), q, z.C);
    head.fetch_rows(head.q, next, z.block, p.key_width);
    transpose(k, kt, z.C, z.K);
    product<false, T>(q, kt, weights, {z.C, z.C, z.K});
    for (int64_t r = 0; r < z.C; ++r) std::fill_n(weights.row(r) + r + 1, z.C - r - 1, T(0));
    product<false, T>(q, state, out, {z.C, z.V, z.K});
    multiply_rows(out, before, out, z.C);
    apply_decayed<1, T>({weights}, v, alpha, count, {out});
  }

  // What previous_state() needs of a block.
  void enter_for_state(const HeadView<T>& head, int64_t block, int64_t next_block) {
    begin(block, next_block);
    decays(head);
    head.load_rows(head.q, first, count, p.key_width, static_cast<T>(p.scale), q, z.C);
    head.fetch_rows(head.q, next, z.block, p.key_width);
    load_dout(head);
    multiply_rows(dout, before, dlocal, z.C);
  }

  [[gnu::noinline]] void previous_state() {
    scale_columns(dstate);
    product<true, T>(q, dlocal, dstate, {z.K, z.V, z.C, Part::all, true});
  }
  [[gnu::noinline]] void next_state() {
    scale_columns(state);
    product<true, T>(k, kept, state, {z.K, z.V, z.C, Part::all, true});
  }
  void scale_columns(M x) {
    for (int64_t c = 0; c < z.K; ++c)
      for (int64_t n = 0; n < z.V; n += kLanes<T>) store(x.row(c) + n, load(x.row(c) + n) * load(total + n));
  }

  [[gnu::noinline]] void gradients() {
    multiply_rows(dout, before, dlocal, z.C);
    decayed_scores<true, false>(dout, v, alpha, count, z.C, z.V, dweights, dweights, lanes);
    transpose(state, state_t, z.K, z.V), transpose(dstate, dstate_t, z.K, z.V);
    product<false, T>(dweights, k, dq, {z.C, z.K, z.C, Part::lower});
    product<false, T>(dlocal, state_t, dq, {z.C, z.K, z.V, Part::all, true});
    product<true, T>(dweights, q, dk, {z.C, z.K, z.C, Part::upper});
    product<false, T>(kept, dstate_t, dk, {z.C, z.K, z.V, Part::all, true});
    product<false, T>(k, dstate, dv, {z.C, z.V, z.K});
    multiply_rows(dv, after, dv, z.C);
    apply_decayed_transposed<1, T>({weights}, {dout}, alpha, count, dv);
  }

  // `last` is the state behind the block.
  [[gnu::noinline]] void decay_gradients(const HeadView<T>& head, M last) {
    for (int64_t n = 0; n < z.V; n += kLanes<T>) {
      Lanes<T> sum{};
      for (int64_t c = 0; c < z.K; ++c) sum += load(dstate.row(c) + n) * load(last.row(c) + n);
      store(sums + n, sum);
    }
    const Operand to = p.dlog_decay.at(head.b, head.h);
    for (int64_t r = count - 1; r >= 0; --r) {
      const int64_t t = first + r;
      const Mark m = head.mark(t);
      for (int64_t n = 0; n < z.V; n += kLanes<T>)
        store(sums + n,
              load(sums + n) + load(out.row(r) + n) * load(dout.row(r) + n) - load(v.row(r) + n) * load(dv.row(r) + n));
      if (m == Mark::first) std::fill_n(sums, z.V, T(0));
      T* row = static_cast<T*>(const_cast<void*>(to.data)) + t * to.token_stride;
      for (int64_t n = 0; n < p.value_width; ++n) row[n] = m == Mark::token ? sums[n] : T(0);
    }
  }

  [[gnu::noinline]] void give(const HeadView<T>& head) {
    const bool adds = head.h % p.heads_per_sum() > 0;
    if (p.dq.data) store_rows(p.dq.at(head.b, head.sum), first, count, p.key_width, dq, static_cast<T>(p.scale), adds);
    if (p.dk.data) store_rows(p.dk.at(head.b, head.sum), first, count, p.key_width, dk, T(1), adds);
    if (!p.dv.data) return;
    for (int64_t i = 0; i < count; ++i)
      if (!head.is_writing(first + i)) std::fill_n(dv.row(i), z.V, T(0));
    store_rows(p.dv.at(head.b, head.h), first, count, p.value_width, dv, T(1), false);
  }

  M q, k, v, kept, kt, weights, out, alpha, before, after;
  T* total = nullptr;
  M dlocal, dv, dweights, dq, dk, state_t, dstate_t;
  T *sums = nullptr, *lanes = nullptr;
};

}  // namespace
}  // namespace weft::cpu
