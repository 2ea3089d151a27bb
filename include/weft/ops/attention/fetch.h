// Rows that are wanted soon, fetched a few at a time: between products, which hide the wait. A burst of them would wait for memory itself.
#pragma once

#include "weft/ops/attention/problem.h"

namespace weft::ops::core {
namespace {

template <int kPlaces>
class Fetcher {
 public:
  // Rows of a place are forgotten when it gets others. Lower places come first.
  void want(int place, const void* first, int64_t stride_bytes, int64_t row_bytes, int64_t rows, bool are_written) {
    wanted_[place] = {static_cast<const char*>(first), stride_bytes, row_bytes, rows, 0, are_written};
  }
  void want(int place, const Operand& x, int64_t first, int64_t end, int64_t width) {
    const int64_t stride = x.token_stride * x.element_bytes;
    if (first < end)
      want(place, static_cast<const char*>(x.data) + first * stride, stride, width * x.element_bytes, end - first,
           false);
    else wanted_[place] = {};
  }
  // Fetches some.
  [[gnu::noinline]] void step() {
    int64_t bytes = kBytesOfStep;
    for (Rows& rows : wanted_)
      for (; rows.done < rows.count; ++rows.done) {
        if (bytes <= 0) return;
        const char* row = rows.first + rows.done * rows.stride;
        if (rows.are_written)
          for (int64_t at = 0; at < rows.bytes; at += 64) __builtin_prefetch(row + at, 1, 2);
        else
          for (int64_t at = 0; at < rows.bytes; at += 64) __builtin_prefetch(row + at, 0, 2);
        bytes -= rows.bytes;
      }
  }

 private:
  static constexpr int64_t kBytesOfStep = 4096;
  struct Rows {
    const char* first = nullptr;
    int64_t stride = 0, bytes = 0, count = 0, done = 0;
    bool are_written = false;
  };
  Rows wanted_[kPlaces];
};

}  // namespace
}  // namespace weft::ops::core
