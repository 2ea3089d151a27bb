// Ranges of the positions and documents of pieces of one side, and which blocks of it a mask leaves out.
#pragma once

#include "weft/core/tensor.h"
#include "weft/ops/attention/tile.h"
#include "weft/ops/attention/tokens.h"

namespace weft::ops::core {
namespace {

// Ranges of pieces of `step` tokens of one side, [B, ceil(n / step)], joined from data: positions need not be sorted.
class Ranges {
 public:
  Ranges() = default;
  Ranges(const TokenView& tokens, int64_t batch, int64_t n, int64_t step) : Ranges(batch, (n + step - 1) / step) {
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t i = 0; i < count_; ++i) {
        TokenRange& range = data_[b * count_ + i];
        const int64_t first = i * step, count = smaller(n - first, step);
        least_and_most(tokens.position + b * tokens.batch_stride, tokens.stride, first, count, range.position_min,
                       range.position_max);
        range.document_min = range.document_max = 0;
        if (tokens.document)
          least_and_most(tokens.document + b * tokens.document_batch_stride, tokens.document_stride, first, count,
                         range.document_min, range.document_max);
      }
  }
  // Of pieces of `pieces` pieces each.
  Ranges(const Ranges& finer, int64_t pieces) : Ranges(finer.batch_, (finer.count_ + pieces - 1) / pieces) {
    for (int64_t b = 0; b < batch_; ++b)
      for (int64_t i = 0; i < count_; ++i) data_[b * count_ + i] = finer.span(b, i * pieces, pieces);
  }
  // Of numbers that are there already.
  Ranges(const TokenRange* data, int64_t batch, int64_t count)
      : batch_(batch), count_(count), data_(const_cast<TokenRange*>(data)) {}
  int64_t count() const { return count_; }
  const TokenRange* row(int64_t b) const { return data_ + b * count_; }
  // Range of pieces [first, first + n), clipped at the end.
  TokenRange span(int64_t b, int64_t first, int64_t n) const {
    TokenRange range = kNoTokens;
    for (int64_t i = first; i < smaller(first + n, count_); ++i) range = join(range, row(b)[i]);
    return range;
  }

 private:
  Ranges(int64_t batch, int64_t count)
      : batch_(batch),
        count_(count),
        memory_(Tensor::empty({batch, count, 4}, kI32, Device::cpu())),
        data_(reinterpret_cast<TokenRange*>(memory_.template mutable_data<int32_t>())) {}

  static void least_and_most(const int32_t* x, int64_t stride, int64_t first, int64_t count, int32_t& least,
                             int32_t& most) {
    auto loop = [&](int64_t step) __attribute__((always_inline)) {
      int32_t low = INT32_MAX, high = INT32_MIN;
      for (int64_t j = first; j < first + count; ++j) {
        const int32_t value = x[j * step];
        low = value < low ? value : low, high = value > high ? value : high;
      }
      least = low, most = high;
    };
    if (stride == 1) loop(1);  // a loop of vectors
    else loop(stride);
  }

  int64_t batch_ = 0, count_ = 0;
  Tensor memory_;
  TokenRange* data_ = nullptr;
};

// The blocks of one side, and above them runs of kFan, kFan^2, ... blocks. Where the mask leaves out a run as a whole, nobody asks for its
// blocks: a window costs its own blocks and not all T / kBlock of the row, whatever the mask is and in whatever order positions are.
class Blocks {
 public:
  explicit Blocks(const Ranges& groups) {
    levels_[0] = Ranges(groups, kGroups);
    for (; num_levels_ < kMostLevels && levels_[num_levels_ - 1].count() > kFan; ++num_levels_)
      levels_[num_levels_] = Ranges(levels_[num_levels_ - 1], kFan);
  }
  int64_t count() const { return levels_[0].count(); }
  const TokenRange* row(int64_t b) const { return levels_[0].row(b); }

  // The first block from `from` on that is not empty, or count(). is_empty(range) says whether nothing of a range of tokens is seen.
  template <class F>
  [[gnu::always_inline]] int64_t first_seen(int64_t b, int64_t from, F&& is_empty) const {
    int level = 0;
    int64_t i = from;
    auto climb = [&] {
      while (level + 1 < num_levels_ && i % kFan == 0) i /= kFan, ++level;
    };
    climb();
    while (i < levels_[level].count()) {
      if (is_empty(levels_[level].row(b)[i])) ++i, climb();
      else if (level == 0) return i;
      else i *= kFan, --level;
    }
    return count();
  }
  // The last such block before `end`, or -1.
  template <class F>
  [[gnu::always_inline]] int64_t last_seen(int64_t b, int64_t end, F&& is_empty) const {
    int level = 0;
    auto climb = [&] {
      while (level + 1 < num_levels_ && end % kFan == 0) end /= kFan, ++level;
    };
    climb();
    while (end > 0) {
      if (is_empty(levels_[level].row(b)[end - 1])) --end, climb();
      else if (level == 0) return end - 1;
      else end *= kFan, --level;
    }
    return -1;
  }

 private:
  static constexpr int64_t kFan = 16;
  static constexpr int kMostLevels = 5;
  Ranges levels_[kMostLevels];
  int num_levels_ = 1;
};

}  // namespace
}  // namespace weft::ops::core
