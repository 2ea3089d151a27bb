#include <algorithm>

#include "weft/core/error.h"
#include "weft/distributed/context_recurrence.h"

namespace weft::dist {

CarryBytes carry_bytes(const CarryShape& shape) {
  const int64_t bytes = static_cast<int64_t>(size_of(shape.dtype)), others = shape.ranks - 1;
  const int64_t state = shape.key_width * shape.value_width,
                map = shape.is_delta ? shape.key_width * shape.key_width
                                     : (shape.are_of_values ? shape.value_width : shape.key_width);
  const int64_t each = shape.segments.most * shape.heads * bytes;
  if (others == 0 || shape.segments.longest <= 1) return {};
  return {.gather_forward = others * each * (state + map),
          .gather_backward = others * each * (shape.is_elementwise ? state + map : state),
          .scan = each * state};
}

// Of plain recurrences. Gathering reads all tokens twice, about an eighth of the work; a scan waits for one rank after the other at its beginning and
// its end, a turn and less for each. Turns of narrow states are short beside a message. Where a row changes ranks more often, as striped ones do, every
// change is a message that somebody waits for.
constexpr int64_t kTurnsPerWait = 8, kWideState = 32 * 32;

CarryChoice choose_carry(const CarryShape& shape) {
  if (shape.ranks == 1) return {.reason = "one rank has the whole sequence"};
  const CarryBytes sent = carry_bytes(shape);
  const int64_t gathered = sent.gather_forward + sent.gather_backward, scanned = 2 * sent.scan;
  const int64_t rows = shape.segments.all / std::max<int64_t>(shape.segments.longest, 1),
                group = shape.heads / std::max<int64_t>(shape.key_heads, 1),
                at_once = std::clamp<int64_t>(shape.threads / std::max<int64_t>(group, 1), 1, shape.key_heads),
                turns = rows * ((shape.key_heads + at_once - 1) / at_once);
  if (!shape.is_delta && !shape.is_elementwise && !shape.is_on_gpu && shape.segments.longest <= 2 * shape.ranks &&
      turns >= kTurnsPerWait * (shape.ranks - 1) && shape.key_width * shape.value_width >= kWideState)
    return {.carry = Carry::scan,
            .reason = str("scan: a rank sends ", scanned, " bytes of states a call, and in ", turns,
                          " turns waits for less than the tokens that gathering reads twice")};
  if (!shape.is_delta)
    return {.reason = str("gather: a rank sends ", gathered, " bytes of states and decays a call",
                          shape.is_elementwise ? "" : ", and does no products twice")};
  if (shape.is_on_gpu)
    return {.reason = str("gather: a rank sends ", gathered,
                          " bytes of states and matrices a call, and a GPU has all heads at once")};
  const int64_t hops = 2 * (shape.segments.longest - 1);
  const int64_t columns = rows * shape.key_heads;
  if (columns < 2 * (shape.ranks - 1))
    return {.reason = str("gather: ", columns, " heads of rows would leave ranks of ", shape.ranks,
                          " waiting for each other; a rank sends ", gathered, " bytes of states and matrices a call")};
  if (scanned + hops * kWaitBytes >= gathered)
    return {.reason = str("gather: a rank sends ", gathered, " bytes of states and matrices a call, a scan ", scanned,
                          " and waits ", hops, " times, each like ", kWaitBytes, " bytes")};
  return {.carry = Carry::scan,
          .reason = str("scan: a rank sends ", scanned, " bytes of states a call, where gathering sends ", gathered,
                        " with matrices")};
}

}  // namespace weft::dist
