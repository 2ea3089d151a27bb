// Recurrences whose tokens are on several ranks (LASP-2, 2502.07563, for every decay and for the delta rule). Tokens are in segments, stretches
// in which positions follow each other. A segment is an affine map of the state that comes in: S' = P S + L. P is a product of decays, for the
// delta rule a matrix. J segments here of at most L tokens, S on all ranks, H heads, K key width, V value width.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "weft/comm/communicator.h"
#include "weft/comm/layout.h"
#include "weft/ops/recurrence.h"

namespace weft::dist {

struct SegmentPlan {
  struct Segment {
    int32_t rank = 0, index = 0;  // whose it is, and which of that rank's
    bool comes_in = false;        // the state behind the segment before it
    bool passes = false;          // and the state behind it depends on that
  };
  std::vector<Segment> segments = {};  // of all ranks, by row and position
  int64_t most = 0;                    // of one rank
  int threads = 1;                     // the fewest of any rank: all send states of as many heads at a time

  bool is_needed(size_t i) const { return i + 1 < segments.size() && segments[i + 1].comes_in; }  // the state behind it
};

// How states reach other ranks.
enum class Carry {
  gather,  // one all-gather of L and P. Plain: no product is made twice. Delta rule: P is computed, and the tokens twice
  scan  // each rank waits for the state of the one before it, heads one after the other, so that ranks work at the same time
};
std::string_view to_string(Carry carry);

struct SegmentCounts {
  int64_t all = 1;      // S
  int64_t longest = 1;  // how many depend on each other, one after the other
  int64_t most = 1;     // of a rank
};
SegmentCounts counts_of(const SegmentPlan& plan);
SegmentCounts counts_of(const Layout& layout, int64_t rows);  // of rows that are one document each

struct CarryShape {
  int ranks = 1;
  SegmentCounts segments = {};
  int64_t key_heads = 1, heads = 1, key_width = 1, value_width = 1;
  bool is_delta = false, are_of_values = false;  // the side of the decay
  bool is_elementwise = false;                   // K = V = 1; backward sends as much as forward
  DType dtype = kF32;                            // of states: f32 or f64
  bool is_on_gpu = false;                        // which a few heads do not fill
  int threads = 1;                               // the fewest of any rank
};
// What a rank sends to others in one direction of a call.
struct CarryBytes {
  int64_t gather_forward = 0, gather_backward = 0, scan = 0;
};
CarryBytes carry_bytes(const CarryShape& shape);
struct CarryChoice {
  Carry carry = Carry::gather;
  std::string reason = {};  // with the bytes that decided
};
// gather on GPUs. Plain recurrences: scan where waiting is less than reading tokens twice: many heads, and one or two segments of a row a rank. The delta
// rule: scan where it sends less, counting each wait as kWaitBytes, and where there are enough heads for all ranks to work.
CarryChoice choose_carry(const CarryShape& shape);
inline constexpr int64_t kWaitBytes = 1 << 14;
// Blocks of a striped layout are segments. Shorter ones than this would send more states than tokens: 2 P V of a head V wide, from which on
// segments send less than an exchange of all tokens to contiguous parts and back.
inline int64_t shortest_stripe(const CarryShape& shape, int ranks) { return 2 * ranks * shape.value_width; }

struct ContextRecurrence {
  Tensor out;     // [J, L, H, V]
  Tensor state;   // wide [J, H, K, V]: behind each segment
  Tensor coming;  // wide [J, H, K, V]: before each
  Tensor maps;    // of gather: P of the segments of all ranks, `most` of each, [.., H, K] | [.., H, V] | [.., H, K, K]
  ops::RecurrenceStates kept = {};
};
// Inputs are of segments: [J, L, ...]. input.state [J, H, K, V] is read where nothing comes in. Every rank calls it.
ContextRecurrence context_recur(Communicator& comm, const SegmentPlan& plan, Carry carry,
                                const ops::RecurrenceInput& input, const ops::RecurrenceOptions& options = {});
// Either of dout and dstate may be undefined. `forward` is what context_recur() returned; of it out and state are not read, and kept may be
// undefined: states are computed again then. dstate of the result: of input.state, zeros where something comes in.
ops::RecurrenceGrads context_recur_backward(Communicator& comm, const SegmentPlan& plan, Carry carry,
                                            const Tensor& dout, const Tensor& dstate, const ContextRecurrence& forward,
                                            const ops::RecurrenceInput& input,
                                            const ops::RecurrenceOptions& options = {},
                                            const ops::RecurrenceWants& wants = {});

}  // namespace weft::dist
