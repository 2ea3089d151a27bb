// What the sides of the recurrence have in common, and the passes over states alone: the first of two passes forward, and dstate without the
// other gradients. See weft/ops/recurrence.h.
#pragma once

#include "ops/cpu/recurrence/block.h"

namespace weft::cpu {
namespace {

struct TwoPasses;

// The heads of a worker and the block at work.
template <class T>
class Side {
 public:
  using M = Matrix<T>;

  Side(const RecurrenceProblem& problem, bool is_backward) : p(problem), z(problem, is_backward) {}

 protected:
  friend TwoPasses;

  // Calls f(head) for each head, with its state and the gradient of it.
  template <class F>
  void for_heads(const Heads& heads, F&& f) {
    for (int64_t h = heads.first; h < heads.last; ++h) {
      state = {state_of_heads + (h - heads.first) * z.K * z.V, z.V};
      dstate = {dstate_of_heads + (h - heads.first) * z.K * z.V, z.V};
      f(HeadView<T>(p, heads.b, h));
    }
  }
  // In a pass in which block `next_block` follows.
  void begin(int64_t block, int64_t next_block) {
    first = block * z.block, count = smaller(z.block, p.tokens - first), next = next_block * z.block;
  }
  void load_dout(const HeadView<T>& head) {
    if (!p.dout.data) return void(std::fill_n(dout.data, z.C * z.V, T(0)));
    const Operand from = p.dout.at(head.b, head.h);
    head.load_rows(from, first, count, p.value_width, T(1), dout, z.C);
    head.fetch_rows(from, next, z.block, p.value_width);
  }

  const RecurrenceProblem& p;
  Sizes<T> z;
  int64_t first = 0, count = 0;  // tokens of the block at work
  int64_t next = 0;              // where the block that follows in this pass begins
  T *state_of_heads = nullptr, *dstate_of_heads = nullptr;
  M state, dstate, dout;
};

struct TwoPasses {
  template <class Some>
  static void keep_states(Some& side, const Heads& heads) {
    side.carve(scratch(side.carve(nullptr, heads.count(), false)), heads.count(), false);
    side.for_heads(heads, [&](const auto& head) {
      std::fill_n(side.state.data, side.z.K * side.z.V, 0);
      head.keep(0, side.state);
      if (side.p.gives_decays) std::fill_n(head.kept_decays(0), head.decays_here(), 1);
    });
    for (int64_t n = 0; n < side.z.blocks; ++n)
      side.for_heads(heads, [&](const auto& head) {
        side.enter(head, n);
        side.next_state();
        const int64_t end = side.first + side.count, kept = head.kept_behind(end);
        head.keep_decays(kept, head.is_kept(side.first), side.total);
        if (end == side.p.tokens || head.is_kept(end)) head.keep(kept, side.state);
      });
  }

  // No state is needed for it.
  template <class Some>
  static void state_gradient(Some& side, const Heads& heads) {
    side.carve(scratch(side.carve(nullptr, heads.count(), true)), heads.count(), true);
    side.for_heads(heads, [&](const auto& head) { head.load_state(side.p.dlast_state, side.dstate, side.z.K); });
    for (int64_t n = side.z.blocks - 1; n >= 0; --n)
      side.for_heads(heads, [&](const auto& head) {
        side.enter_for_state(head, n, n - 1);
        side.previous_state();
      });
    side.for_heads(heads, [&](const auto& head) { head.store_state(side.p.dstate, side.dstate); });
  }
};

}  // namespace
}  // namespace weft::cpu
