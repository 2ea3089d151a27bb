// Which keys the query at one position sees.
#pragma once

#include <algorithm>
#include <cstdint>

#include "weft/comm/layout.h"

namespace weft::dist {

// Positions begin .. end - 1, and more_begin .. more_end - 1, which are further back. Both stretches of a later query neither begin nor end
// before those of an earlier one of its document.
struct SeenKeys {
  int32_t begin = 0, end = 0, more_begin = 0, more_end = 0;
  int64_t count() const { return end - begin + (more_end - more_begin); }
};

// Of the query at position t in the document begin .. end - 1.
inline SeenKeys seen_keys(int64_t t, int64_t begin, int64_t end, const TokenMask& mask) {
  const int64_t first = mask.window > 0 ? std::max(begin, t - mask.window + 1) : begin,
                last = mask.is_causal || mask.window > 0 ? t + 1 : end, prefix = std::min(mask.prefix, end);
  auto seen = [](int64_t from, int64_t to, int64_t more_from, int64_t more_to) {
    return SeenKeys{static_cast<int32_t>(from), static_cast<int32_t>(to), static_cast<int32_t>(more_from),
                    static_cast<int32_t>(more_to)};
  };
  if (mask.prefix == 0 || prefix <= begin) return seen(first, last, begin, begin);
  if (prefix < first) return seen(first, last, begin, prefix);
  return seen(begin, std::max(last, prefix), begin, begin);
}

// f(t, seen) of each of the tokens 0 .. tokens - 1 but padding.
template <class F>
void for_each_query(int64_t tokens, const TokenMask& mask, F&& f) {
  auto document = [&](int64_t t) { return mask.documents.empty() ? 0 : mask.documents[static_cast<size_t>(t)]; };
  for (int64_t begin = 0, end = 0; begin < tokens; begin = end) {
    while (end < tokens && document(end) == document(begin)) ++end;
    if (document(begin) < 0) continue;
    for (int64_t t = begin; t < end; ++t) f(t, seen_keys(t, begin, end, mask));
  }
}

}  // namespace weft::dist
