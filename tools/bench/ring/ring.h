// What the parts of `weft bench ring` share: masks over one row of tokens, kernels, cases, and what is measured of them.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "tools/bench/bench.h"
#include "weft/comm/layout.h"
#include "weft/data/document_lengths.h"
#include "weft/distributed/choose_scheme.h"
#include "weft/ops/attention.h"

namespace weft::bench {

inline constexpr int64_t kRingTile = 64;  // blocks of layouts, and tiles that plans count

// The keys that a query sees: places begin .. end - 1 of the row, and those before `first_end`, which is at most `begin`.
struct Seen {
  int32_t begin = 0, end = 0, first_end = 0;
  int64_t count() const { return end - begin + first_end; }
};

// A mask over one row. The core is given positions and documents of each place; it does not know the place itself.
struct RowMask {
  std::string name = {};
  ops::AttentionMask mask = {};
  std::vector<int32_t> positions = {}, documents = {};  // documents may be empty
  std::vector<Seen> seen = {};                          // of each place
  dist::TokenMask causal = {};                          // the mask as a balanced layout knows it: tokens stand in order

  int64_t tokens() const { return static_cast<int64_t>(positions.size()); }
  double pairs() const;
};

// The masks of LongCA-bench (2510.17896), by our names. `why_not`: what there is no AttentionMask for.
struct MaskKind {
  const char *name, *sees, *why_not;
};
std::span<const MaskKind> ring_masks();
RowMask make_ring_mask(const std::string& name, int64_t tokens, const data::DocumentLengths& lengths);
// Visible pairs and tiles of every rank and hop, of any such mask.
dist::HopPlan plan_of_seen(const dist::Layout& layout, const RowMask& mask, int64_t tile = kRingTile);

// What the core computes, with heads of width 64.
struct RingKernel {
  const char* name = "softmax";
  DType dtype = kF32;
  int64_t heads = 8, kv_heads = 8;
  ops::AttentionOptions options = {};
};
std::span<const RingKernel> ring_kernels();

struct RingCase {
  dist::Scheme scheme = dist::Scheme::ring;
  dist::Layout layout;
  dist::SchemeOptions options = {};

  std::string name() const;  // "ring, zigzag"
};
std::string layout_name(const dist::Layout& layout);
dist::Layout make_ring_layout(dist::LayoutKind kind, const RowMask& mask, int ranks);
dist::ContextShape ring_shape(const RingKernel& kernel, const RowMask& mask, const dist::Layout& layout);
// The most that forward and backward can reach, of what one rank with as many threads would: the busiest rank does not wait for others.
double ring_bound(const RingKernel& kernel, const RowMask& mask, const RingCase& c);
// Speed of a core while another one works, as a share of its speed while the other is idle.
double shared_core_speed();

struct RingMeasured {
  double forward = 0, both = 0;  // time over that of one rank, medians
  double seconds = 0;            // of forward and backward, median
  // Of the rank that has most: the peak beside queries, keys, values and the gradient of the output, and what it sent.
  int64_t extra_bytes = 0, sent_bytes = 0;
};
// Each case, one after the other in turn with one rank that has as many threads; before that, its results are compared with that rank's.
std::vector<RingMeasured> measure_ring(const RingKernel& kernel, const RowMask& mask, std::span<const RingCase> cases,
                                       int ranks, int rounds);

// Steps of a training over two ranks beside one rank of two threads.
std::vector<Row> ring_training_rows(bool quick);

// Layouts of 32 tokens over 4 ranks under a few masks, with the work of every rank at every hop, as SVG.
std::string ring_picture();

}  // namespace weft::bench
