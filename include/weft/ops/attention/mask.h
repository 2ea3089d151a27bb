// The masks of AttentionMask as one functor: which keys a query sees, from global positions and documents.
//   keep = ((is_causal: k <= q) and (window: 0 <= q - k < window) or k < prefix) and (same_document: equal and >= 0)
#pragma once

#include "weft/ops/attention.h"
#include "weft/ops/attention/tokens.h"

namespace weft::ops {

class StandardMask {
 public:
  explicit StandardMask(const AttentionMask& mask)
      : behind_(mask.window > 0 && mask.window < kFar ? static_cast<int32_t>(mask.window - 1) : kFar),
        is_ahead_seen_(!mask.is_causal && mask.window == 0),
        prefix_(mask.prefix > 0 ? static_cast<int32_t>(std::min<int64_t>(mask.prefix, INT32_MAX)) : INT32_MIN),
        same_document_(mask.same_document) {}

  template <class I>
  [[gnu::always_inline]] WEFT_HD auto keep(int64_t, int64_t, Token<I> q, Token<I> k) const {
    auto distance = q.position - k.position;
    auto keep = (distance <= behind_) & (is_ahead_seen_ ? distance == distance : distance >= 0);
    if (prefix_ != INT32_MIN) keep |= k.position < prefix_;
    if (same_document_) keep &= (q.document == k.document) & (k.document >= 0);
    return keep;
  }

  [[gnu::always_inline]] WEFT_HD Cover cover(int64_t, int64_t, const TokenRange& q, const TokenRange& k) const {
    int64_t nearest = int64_t{q.position_min} - k.position_max, farthest = int64_t{q.position_max} - k.position_min;
    bool is_empty = nearest > behind_ || (!is_ahead_seen_ && farthest < 0);
    bool is_full = farthest <= behind_ && (is_ahead_seen_ || nearest >= 0);
    if (k.position_min < prefix_) is_empty = false;
    if (k.position_max < prefix_) is_full = true;
    if (same_document_) {
      is_empty = is_empty || q.document_min > k.document_max || k.document_min > q.document_max || k.document_max < 0;
      is_full = is_full && q.document_min == q.document_max && k.document_min == k.document_max &&
                q.document_min == k.document_min && k.document_min >= 0;
    }
    return is_empty ? Cover::empty : is_full ? Cover::full : Cover::partial;
  }

  bool operator==(const StandardMask&) const = default;

 private:
  static constexpr int32_t kFar = INT32_MAX;
  int32_t behind_;  // largest distance that is seen
  bool is_ahead_seen_;
  int32_t prefix_;
  bool same_document_;
};

}  // namespace weft::ops
