// The chunkwise recurrence with a decay of tokens or of key channels (Yang et al., 2406.06484). With the state S before a block, per block:
//   Qp = scale Q a_0..a_r,  Kn = -K a_0..a_r,  Km = K a_{r+1}..a_end            (rows r)
//   P(r, i) = scale q_r (D k_i) for i <= r,  Mn(r, i) = -k_r (D k_i) for i < r   with D = a_{i+1}..a_r
//   plain: U = V        delta: E = V + Kn S + Mn U and u_r = beta_r e_r, row after row
//   O = Qp S + P U,  S' = Diag(a_0..a_end) S + Km^T U
// Backward, with dO and the gradient dS' of the state behind the block:
//   dU = P^T dO + Km dS',  dP = dO U^T,  dQ = scale (dP K under D + a_0..a_r (dO S^T)),  dK = dP^T Q under D + a_{r+1}..a_end (U dS'^T)
//   plain: dV = dU      delta: Y = dU + Mn^T dV and dv_r = beta_r y_r, from the last row;  dbeta_r = y_r e_r
//     dMn = dV U^T,  dK += -(dMn K + dMn^T K under D) - a_0..a_r (dV S^T)
//   dS = Diag(a_0..a_end) dS' + Qp^T dO + Kn^T dV
//   dg: sums from the last row to r of q dq + k (dk as reader - dk as writer), which begin with sum_v dS' S'.
#pragma once

#include "ops/cpu/recurrence/two_passes.h"

namespace weft::cpu {
namespace {

template <class T, bool kChannels, bool kDelta>
class KeySide : public Side<T> {
 public:
  using Side<T>::Side;

  void forward(const Heads& heads) {
    carve(scratch(carve(nullptr, heads.count(), false)), heads.count(), false);
    for_heads(heads, [&](const HeadView<T>& head) { head.load_state(p.state, state, z.K); });
    for (int64_t n = 0; n < z.blocks; ++n)
      for_heads(heads, [&](const HeadView<T>& head) {
        if (head.is_kept(n * z.block)) head.load_kept(n * z.block / p.kept_block, state, z.K);
        enter(head, n);
        if (p.out.data) read(head);
        else solve_only();
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
      if (p.dlog_decay_of_head) p.dlog_decay_of_head[head.b * p.heads + head.h] = 0;
    });
    for (int64_t n = 0; n < z.blocks; ++n)
      for_heads(heads, [&](const HeadView<T>& head) {
        if (head.load_behind(n, z, behind(head, n), state)) return;
        enter(head, n);
        solve_only();
        next_state();
        std::copy_n(state.data, each, behind(head, n).data);
      });
    for (int64_t n = z.blocks - 1; n >= 0; --n)
      for_heads(heads, [&](const HeadView<T>& head) {
        state = behind(head, n - 1);
        enter(head, n, n - 1);
        queries(head);
        load_dout(head);
        scores<true>();
        solve();
        gradients();
        const double of_block = decay_gradients(head, behind(head, n));
        if (p.dlog_decay_of_head) p.dlog_decay_of_head[head.b * p.heads + head.h] += of_block;
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
    q = take(z.C, z.K), k = take(z.C, z.K), u = take(z.C, z.V), e = kDelta ? take(z.C, z.V) : u;
    qp = take(z.C, z.K), kn = take(z.C, kDelta ? z.K : 0), km = take(z.C, z.K), kt = take(z.K, z.C);
    weights = take(z.C, z.C), strict = take(z.C, z.C), relative = take(z.C, z.C);
    out = take(z.C, z.V);
    const int64_t width = kChannels ? z.K : 1;
    alpha = take(kChannels ? z.C : 1, kChannels ? z.K : z.C);
    before = take(z.C, width), after = take(z.C, width);
    total = c.take<T>(z.K), beta = c.take<T>(z.C);
    lanes = c.take<T>(kChannels ? z.K * kLanes<T> : 0);
    if (is_backward) {
      dout = take(z.C, z.V), du = take(z.C, z.V), dv = kDelta ? take(z.C, z.V) : du;
      dweights = take(z.C, z.C), dstrict = take(z.C, z.C);
      dq = take(z.C, z.K), dwriter = take(z.C, z.K), dreader = take(z.C, z.K);
      ut = take(z.V, z.C), state_t = take(z.V, z.K), dstate_t = take(z.V, z.K);
      dbeta = c.take<T>(z.C), sums = c.take<T>(z.K), minus = c.take<T>(z.C);
    }
    return c.used();
  }

  // Everything of a block that does not depend on the state or on queries.
  void enter(const HeadView<T>& head, int64_t block) { enter(head, block, block + 1); }
  [[gnu::noinline]] void enter(const HeadView<T>& head, int64_t block, int64_t next_block) {
    begin(block, next_block);
    head.load_rows(head.k, first, count, p.key_width, T(1), k, z.C);
    head.fetch_rows(head.k, next, z.block, p.key_width), head.fetch_rows(head.v, next, z.block, p.value_width);
    if constexpr (kDelta) {
      head.load_rows(head.v, first, count, p.value_width, T(1), e, z.C);
      for (int64_t i = 0; i < z.C; ++i) {
        const int64_t t = first + i;
        const bool writes = i < count && head.mark(t) != Mark::padding && head.is_writing(t);
        beta[i] = writes ? element<T>(head.beta, t * head.beta.token_stride) : T(0);
      }
    } else {
      head.load_values(first, count, u, z.C);
    }
    decays(head);
    if constexpr (kChannels) {
      multiply_rows(k, after, km, z.C);
      if constexpr (kDelta) multiply_rows(k, before, kn, z.C, T(-1));
    } else {
      multiply_rows(k, after.data, km, z.C);
      if constexpr (kDelta) {
        for (int64_t i = 0; i < z.C; ++i)
          for (int64_t c = 0; c < z.K; c += kLanes<T>) store(kn.row(i) + c, load(k.row(i) + c) * -before.data[i]);
      }
    }
  }

  void decays(const HeadView<T>& head) {
    if constexpr (kChannels) {
      head.load_decays(first, count, p.key_width, alpha, z.C);
      head.fetch_rows(head.log_decay, next, z.block, p.key_width);
      running_products(alpha, z.C, before, after);
      std::copy_n(before.row(z.C - 1), z.K, total);
    } else {
      head.load_decays(first, count, z.C, alpha.data);
      T product = 1;
      for (int64_t i = 0; i < z.C; ++i) before.data[i] = product *= alpha.data[i];
      std::fill_n(total, z.K, product);
      product = 1;
      for (int64_t i = z.C - 1; i >= 0; --i) after.data[i] = product, product *= alpha.data[i];
    }
  }

  // relative(r, i) = a_{i+1} .. a_r for i <= r, else 0, of decays that are one number per token.
  void relative_products() {
    std::fill_n(relative.data, z.C, T(0));
    relative.data[0] = 1;
    for (int64_t r = 1; r < z.C; ++r) {
      for (int64_t i = 0; i < z.C; i += kLanes<T>)
        store(relative.row(r) + i, load(relative.row(r - 1) + i) * alpha.data[r]);
      relative.row(r)[r] = 1;
    }
  }

  [[gnu::noinline]] void queries(const HeadView<T>& head) {
    head.load_rows(head.q, first, count, p.key_width, static_cast<T>(p.scale), q, z.C);
    head.fetch_rows(head.q, next, z.block, p.key_width);
    if constexpr (kChannels) multiply_rows(q, before, qp, z.C);
    else multiply_rows(q, before.data, qp, z.C);
  }

  // What previous_state() needs of a block: of the plain write, neither keys nor values.
  void enter_for_state(const HeadView<T>& head, int64_t block, int64_t next_block) {
    if constexpr (kDelta) enter(head, block, next_block);
    else begin(block, next_block), decays(head);
    queries(head);
    load_dout(head);
    if constexpr (kDelta) scores<true>(), gradient_of_writes();
  }

  void read(const HeadView<T>& head) {
    queries(head);
    scores<true>();
    solve();
    product<false, T>(qp, state, out, {z.C, z.V, z.K});
    product<false, T>(weights, u, out, {z.C, z.V, z.C, Part::lower, true});
    store_rows(p.out.at(head.b, head.h), first, count, p.value_width, out, T(1), false);
  }
  // What is written, where nothing is read.
  void solve_only() {
    if constexpr (kDelta) scores<false>();
    solve();
  }

  // weights = P, if it is wanted, and strict = Mn.
  template <bool kReads>
  [[gnu::noinline]] void scores() {
    if constexpr (kChannels) {
      decayed_scores<kReads, kDelta>(q, k, alpha, count, z.C, z.K, weights, strict, lanes);
    } else {
      relative_products();
      transpose(k, kt, z.C, z.K);
      if constexpr (kReads) {
        product<false, T>(q, kt, weights, {z.C, z.C, z.K, Part::lower_rows});
        decay_scores(weights, T(1), 0);
      }
      if constexpr (kDelta) {
        product<false, T>(k, kt, strict, {z.C, z.C, z.K, Part::lower_rows});
        decay_scores(strict, T(-1), 1);
      }
    }
  }
  // x(r, i) *= factor relative(r, i) for i <= r - gap; zeros behind, as far as a tile of rows reads.
  void decay_scores(M x, T factor, int64_t gap) {
    for (int64_t r = 0; r < z.C; ++r) {
      const int64_t end = round_up(r / kTile * kTile + kTile, kLanes<T>);
      for (int64_t i = 0; i < end; i += kLanes<T>)
        store(x.row(r) + i, load(x.row(r) + i) * (load(relative.row(r) + i) * factor));
      if (gap) x.row(r)[r] = 0;
    }
  }

  // u, and for the delta rule e: forward substitution by tiles of rows.
  [[gnu::noinline]] void solve() {
    if constexpr (kDelta) {
      product<false, T>(kn, state, e, {z.C, z.V, z.K, Part::all, true});
      for (int64_t r0 = 0; r0 < z.C; r0 += kTile) {
        if (r0 > 0) product<false, T>({strict.row(r0), z.C}, u, {e.row(r0), z.V}, {kTile, z.V, r0, Part::all, true});
        for (int64_t r = r0; r < r0 + kTile; ++r)
          for (int64_t c = 0; c < z.V; c += kLanes<T>) {
            Lanes<T> sum = load(e.row(r) + c);
            for (int64_t i = r0; i < r; ++i) sum += load(u.row(i) + c) * strict.row(r)[i];
            store(e.row(r) + c, sum);
            store(u.row(r) + c, sum * beta[r]);
          }
      }
    }
  }

  [[gnu::noinline]] void next_state() { product<true, T>(km, u, state, {z.K, z.V, z.C, Part::all, false, total}); }

  // The gradient of the decay is made of those of q and k.
  bool wants_decay() const { return p.dlog_decay.data || p.dlog_decay_of_head; }
  bool wants_q() const { return p.dq.data || wants_decay(); }
  bool wants_k() const { return p.dk.data || wants_decay(); }

  void gradient_of_writes() {
    product<true, T>(weights, dout, du, {z.C, z.V, z.C, Part::upper});
    product<false, T>(km, dstate, du, {z.C, z.V, z.K, Part::all, true});
    if constexpr (kDelta) solve_backward();
  }

  [[gnu::noinline]] void gradients() {
    gradient_of_writes();
    if (!wants_q() && !wants_k()) return;
    transpose(u, ut, z.C, z.V), transpose(state, state_t, z.K, z.V);
    product<false, T>(dout, ut, dweights, {z.C, z.C, z.V, Part::lower_rows});
    product<false, T>(dout, state_t, dq, {z.C, z.K, z.V});
    if (wants_k()) {
      transpose(dstate, dstate_t, z.K, z.V);
      product<false, T>(u, dstate_t, dwriter, {z.C, z.K, z.V});
      if constexpr (kDelta) {
        product<false, T>(dv, ut, dstrict, {z.C, z.C, z.V, Part::lower_rows});
        product<false, T>(dv, state_t, dreader, {z.C, z.K, z.V});
      }
    }
    if constexpr (kChannels) channel_gradients();
    else token_gradients();
  }

  // dv = beta y, dbeta = y e; y in place of du, from the last tile of rows to the first.
  void solve_backward() {
    for (int64_t r0 = z.C - kTile; r0 >= 0; r0 -= kTile) {
      const int64_t behind = r0 + kTile;
      if (behind < z.C)
        product<true, T>({strict.row(behind) + r0, z.C}, {dv.row(behind), z.V}, {du.row(r0), z.V},
                         {kTile, z.V, z.C - behind, Part::all, true});
      for (int64_t r = behind - 1; r >= r0; --r) {
        for (int64_t c = 0; c < z.V; c += kLanes<T>) {
          Lanes<T> sum = load(du.row(r) + c);
          for (int64_t i = r + 1; i < behind; ++i) sum += load(dv.row(i) + c) * strict.row(i)[r];
          store(du.row(r) + c, sum);
          store(dv.row(r) + c, sum * beta[r]);
        }
        dbeta[r] = dot(du.row(r), e.row(r), z.V);
      }
    }
  }

  void token_gradients() {
    for (int64_t i = 0; i < z.C; ++i) minus[i] = -before.data[i];
    decay_scores(dweights, T(1), 0);
    product<false, T>(dweights, k, dq, {z.C, z.K, z.C, Part::lower, false, before.data});
    if (!wants_k()) return;
    product<true, T>(dweights, q, dwriter, {z.C, z.K, z.C, Part::upper, false, after.data});
    if constexpr (kDelta) {
      decay_scores(dstrict, T(-1), 1);
      product<false, T>(dstrict, k, dreader, {z.C, z.K, z.C, Part::lower, false, minus});
      product<true, T>(dstrict, k, dwriter, {z.C, z.K, z.C, Part::upper, true});
    }
  }
  void channel_gradients() {
    multiply_rows(dq, before, dq, z.C);
    if (!wants_k()) return apply_decayed<1, T>({dweights}, k, alpha, count, {dq});
    multiply_rows(dwriter, after, dwriter, z.C);
    if constexpr (kDelta) {
      multiply_rows(dreader, before, dreader, z.C, T(-1));
      for (int64_t r = 0; r < z.C; ++r) {
        for (int64_t i = 0; i < r; ++i) dstrict.row(r)[i] = -dstrict.row(r)[i];
        dstrict.row(r)[r] = 0;
      }
      apply_decayed<2, T>({dweights, dstrict}, k, alpha, count, {dq, dreader});
      apply_decayed_transposed<2, T>({dweights, dstrict}, {q, k}, alpha, count, dwriter);
    } else {
      apply_decayed<1, T>({dweights}, k, alpha, count, {dq});
      apply_decayed_transposed<1, T>({dweights}, {q}, alpha, count, dwriter);
    }
  }

  // Stores dlog_decay and returns its sum over the block, if it is one number per token. `last` is the state behind the block.
  [[gnu::noinline]] double decay_gradients(const HeadView<T>& head, M last) {
    if (!wants_decay()) return 0;
    for (int64_t c = 0; c < z.K; ++c) sums[c] = dot(dstate.row(c), last.row(c), z.V);
    T sum = 0;
    double of_block = 0;
    if constexpr (!kChannels)
      for (int64_t c = 0; c < z.K; ++c) sum += sums[c];
    const Operand to = p.dlog_decay.at(head.b, head.h);
    for (int64_t r = count - 1; r >= 0; --r) {
      const int64_t t = first + r;
      const Mark m = head.mark(t);
      if constexpr (kChannels) {
        for (int64_t c = 0; c < z.K; c += kLanes<T>) store(sums + c, load(sums + c) + share(r, c));
        if (m == Mark::first) std::fill_n(sums, z.K, T(0));
        T* row = static_cast<T*>(const_cast<void*>(to.data)) + t * to.token_stride;
        for (int64_t c = 0; c < p.key_width; ++c) row[c] = m == Mark::token ? sums[c] : T(0);
      } else {
        Lanes<T> here{};
        for (int64_t c = 0; c < z.K; c += kLanes<T>) here += share(r, c);
        sum += sum_of(here);
        if (m == Mark::first) sum = 0;
        const T given = m == Mark::token ? sum : T(0);
        if (to.data) static_cast<T*>(const_cast<void*>(to.data))[t * to.token_stride] = given;
        of_block += static_cast<double>(given);
      }
    }
    return of_block;
  }
  // q dq + k (dk as reader - dk as writer).
  [[gnu::always_inline]] Lanes<T> share(int64_t r, int64_t c) const {
    Lanes<T> dkey = -load(dwriter.row(r) + c);
    if constexpr (kDelta) dkey += load(dreader.row(r) + c);
    return load(q.row(r) + c) * load(dq.row(r) + c) + load(k.row(r) + c) * dkey;
  }

  [[gnu::noinline]] void give(const HeadView<T>& head) {
    const bool adds = head.h % p.heads_per_sum() > 0;
    if (kDelta && p.dk.data)
      for (int64_t i = 0; i < count * z.K; i += kLanes<T>)
        store(dwriter.data + i, load(dwriter.data + i) + load(dreader.data + i));
    if (p.dq.data) store_rows(p.dq.at(head.b, head.sum), first, count, p.key_width, dq, static_cast<T>(p.scale), adds);
    if (p.dk.data) store_rows(p.dk.at(head.b, head.sum), first, count, p.key_width, dwriter, T(1), adds);
    if (p.dv.data) {
      if constexpr (!kDelta)
        for (int64_t i = 0; i < count; ++i)
          if (!head.is_writing(first + i)) std::fill_n(dv.row(i), z.V, T(0));
      store_rows(p.dv.at(head.b, head.h), first, count, p.value_width, dv, T(1), false);
    }
    if constexpr (kDelta) {
      if (!p.dbeta.data) return;
      const Operand to = p.dbeta.at(head.b, head.h);
      for (int64_t i = 0; i < count; ++i) {
        const bool writes = head.mark(first + i) != Mark::padding && head.is_writing(first + i);
        static_cast<T*>(const_cast<void*>(to.data))[(first + i) * to.token_stride] = writes ? dbeta[i] : T(0);
      }
    }
  }

  [[gnu::noinline]] void previous_state() {
    product<true, T>(qp, dout, dstate, {z.K, z.V, z.C, Part::all, false, total});
    if constexpr (kDelta) product<true, T>(kn, dv, dstate, {z.K, z.V, z.C, Part::all, true});
  }

  M q, k, u, e, qp, kn, km, kt, weights, strict, relative, out, alpha, before, after;
  T *total = nullptr, *beta = nullptr, *lanes = nullptr;
  M du, dv, dweights, dstrict, dq, dwriter, dreader, ut, state_t, dstate_t;
  T *dbeta = nullptr, *sums = nullptr, *minus = nullptr;
};

}  // namespace
}  // namespace weft::cpu
