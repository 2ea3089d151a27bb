#include "src/nn/mixers/tlinformer/windows.h"

#include <algorithm>

namespace weft {

namespace {

struct Window {
  int32_t document, number;
  std::vector<int32_t> tokens;  // here, of the T
  bool operator==(const Window& o) const { return document == o.document && number == o.number; }
};

// Of the tokens of `row` here, in the order in which they are met.
std::vector<Window> windows_of(const ChunkPlaces& all, int64_t row) {
  const auto T = static_cast<int64_t>(all.here.size()) / std::max<int64_t>(all.batch, 1);
  std::vector<Window> windows;
  for (int64_t t = 0; t < T; ++t) {
    const int32_t s = all.here[static_cast<size_t>(row * T + t)];
    Window window{all.document(row, s), all.number(row, s), {}};
    if (window.document < 0) continue;
    auto found = std::find(windows.rbegin(), windows.rend(), window);
    Window& mine = found == windows.rend() ? windows.emplace_back(std::move(window)) : *found;
    mine.tokens.push_back(static_cast<int32_t>(t));
  }
  return windows;
}

}  // namespace

TlinWindows::TlinWindows(const ChunkPlaces& all, const ChunkPlaces& near, int64_t num_rows, Device device) {
  const int64_t B = all.batch, S = all.num_tokens, R = num_rows;
  const auto T = static_cast<int64_t>(all.here.size()) / std::max<int64_t>(B, 1);
  std::vector<std::vector<Window>> of_rows;
  for (int64_t b = 0; b < B; ++b) {
    of_rows.push_back(windows_of(all, b));
    count = std::max(count, static_cast<int64_t>(of_rows.back().size()));
    for (const Window& w : of_rows.back()) queries = std::max(queries, static_cast<int64_t>(w.tokens.size()));
  }
  auto slot_of = [](const ChunkPlaces& p, int64_t b, int64_t s) {
    return p.positions[static_cast<size_t>(b * p.num_tokens + s)] % static_cast<int32_t>(p.chunk);
  };
  for (int64_t b = 0; b < B; ++b)  // no longer than a window that occurs, however long windows may be
    for (int64_t s = 0; s < S; ++s)
      if (all.document(b, s) >= 0) length = std::max<int64_t>(length, slot_of(all, b, s) + 1);
  const int64_t N = count, Q = queries, W = length;
  auto sized = [](int64_t n) { return std::vector<int32_t>(static_cast<size_t>(n), -1); };
  queries_of = sized(B * N * Q), place = sized(B * T), own = sized(B * N * W), own_near = own, rows = sized(B * N * R);
  row_positions.assign(rows.size(), 0);
  history_end.assign(static_cast<size_t>(N), 0);
  std::vector<uint8_t> own_bits(static_cast<size_t>(B * N * Q * W)), row_bits(rows.size()),
      history_bits(static_cast<size_t>(B * N * S));
  for (int64_t b = 0; b < B; ++b)
    for (int64_t n = 0; n < static_cast<int64_t>(of_rows[static_cast<size_t>(b)].size()); ++n) {
      const Window& window = of_rows[static_cast<size_t>(b)][static_cast<size_t>(n)];
      const int64_t at = b * N + n;
      std::vector<int32_t> history;
      for (int64_t s = 0; s < S; ++s) {
        if (all.document(b, s) != window.document) continue;
        if (all.number(b, s) == window.number)
          own[static_cast<size_t>(at * W + slot_of(all, b, s))] = static_cast<int32_t>(b * S + s);
        if (all.number(b, s) >= window.number) continue;
        history.push_back(static_cast<int32_t>(s));
        history_bits[static_cast<size_t>(at * S + s)] = 1;
        auto& end = history_end[static_cast<size_t>(n)];
        end = std::max(end, s + 1);
      }
      for (int64_t s = 0; s < near.num_tokens; ++s)
        if (near.document(b, s) == window.document && near.number(b, s) == window.number)
          own_near[static_cast<size_t>(at * W + slot_of(near, b, s))] = static_cast<int32_t>(b * near.num_tokens + s);
      const auto length = static_cast<int64_t>(history.size()), kept = std::min(R, length);
      for (int64_t r = 0; r < kept; ++r) {
        const int64_t s = history[static_cast<size_t>(length - kept + r)], to = at * R + r;
        rows[static_cast<size_t>(to)] = static_cast<int32_t>(b * S + s);
        row_positions[static_cast<size_t>(to)] = all.positions[static_cast<size_t>(b * S + s)];
        row_bits[static_cast<size_t>(to)] = 1;
      }
      for (size_t i = 0; i < window.tokens.size(); ++i) {
        const int64_t t = b * T + window.tokens[i], to = at * Q + static_cast<int64_t>(i);
        queries_of[static_cast<size_t>(to)] = static_cast<int32_t>(t);
        place[static_cast<size_t>(t)] = static_cast<int32_t>(to);
        const int32_t mine = slot_of(all, b, all.here[static_cast<size_t>(t)]);
        for (int32_t slot = 0; slot <= mine; ++slot)
          own_bits[static_cast<size_t>(to * W + slot)] = own[static_cast<size_t>(at * W + slot)] >= 0;
      }
    }
  sees_own = truths_on(device, own_bits, {B * N, 1, Q, W});
  has_row = truths_on(device, row_bits, {B * N, 1, 1, R});
  is_history = truths_on(device, history_bits, {B, N, 1, 1, S});
}

}  // namespace weft
