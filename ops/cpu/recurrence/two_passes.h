// The passes over states alone, of either side: the first of two passes forward, and dstate without the other gradients. See
// weft/ops/recurrence.h.
#pragma once

#include "ops/cpu/recurrence/block.h"

namespace weft::cpu {
namespace {

struct TwoPasses {
  template <class Side>
  static void keep_states(Side& side, const Heads& heads) {
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
  template <class Side>
  static void state_gradient(Side& side, const Heads& heads) {
    side.carve(scratch(side.carve(nullptr, heads.count(), true)), heads.count(), true);
    side.for_heads(heads, [&](const auto& head) { head.load_state(side.p.dlast_state, side.dstate, side.z.K); });
    for (int64_t n = side.z.blocks - 1; n >= 0; --n)
      side.for_heads(heads, [&](const auto& head) {
        side.enter(head, n);
        side.enter_for_state(head);
        side.previous_state();
      });
    side.for_heads(heads, [&](const auto& head) { head.store_state(side.p.dstate, side.dstate); });
  }
};

}  // namespace
}  // namespace weft::cpu
