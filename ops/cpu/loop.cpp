#include "ops/cpu/loop.h"

#include <algorithm>
#include <cstring>

#include "weft/core/error.h"
#include "weft/core/parallel.h"

namespace weft::cpu {

namespace {

constexpr int64_t kBlock = 512;  // elements that are gathered at a time
constexpr int64_t kMinRow = 64;  // shorter rows are gathered across their ends

using Buffers = char[kMaxOperands][kBlock * 8];

// Copies n elements of `bytes` from stride `step_from` to stride `step_to` (bytes).
template <class T>
void copy_strided_as(char* to, int64_t step_to, const char* from, int64_t step_from, int64_t n) {
  T x;
  if (step_to == sizeof(T) && step_from == 0) {
    std::memcpy(&x, from, sizeof x);
    for (int64_t i = 0; i < n; ++i) std::memcpy(to + i * static_cast<int64_t>(sizeof x), &x, sizeof x);
    return;
  }
  for (int64_t i = 0; i < n; ++i) {
    std::memcpy(&x, from + i * step_from, sizeof x);
    std::memcpy(to + i * step_to, &x, sizeof x);
  }
}
void copy_strided(char* to, int64_t step_to, const char* from, int64_t step_from, int64_t n, int64_t bytes) {
  if (step_to == bytes && step_from == bytes) {
    std::memmove(to, from, static_cast<size_t>(n * bytes));
    return;
  }
  switch (bytes) {
    case 1: return copy_strided_as<uint8_t>(to, step_to, from, step_from, n);
    case 2: return copy_strided_as<uint16_t>(to, step_to, from, step_from, n);
    case 4: return copy_strided_as<uint32_t>(to, step_to, from, step_from, n);
    default: return copy_strided_as<uint64_t>(to, step_to, from, step_from, n);
  }
}

// Transposes a tile of at most one cache line per row, rows x columns of `from`, through a buffer: every line is touched once.
template <class T>
void copy_tile_as(char* to, int64_t step_to, const char* from, int64_t step_from, int64_t rows, int64_t columns) {
  constexpr int64_t kEdge = 64 / sizeof(T);
  T tile[kEdge][kEdge];
  for (int64_t r = 0; r < rows; ++r) {
    T line[kEdge];
    std::memcpy(line, from + r * step_from, static_cast<size_t>(columns) * sizeof(T));
    for (int64_t c = 0; c < columns; ++c) tile[c][r] = line[c];
  }
  for (int64_t c = 0; c < columns; ++c) std::memcpy(to + c * step_to, tile[c], static_cast<size_t>(rows) * sizeof(T));
}
void copy_tile(char* to, int64_t step_to, const char* from, int64_t step_from, int64_t rows, int64_t columns,
               int64_t bytes) {
  switch (bytes) {
    case 1: return copy_tile_as<uint8_t>(to, step_to, from, step_from, rows, columns);
    case 2: return copy_tile_as<uint16_t>(to, step_to, from, step_from, rows, columns);
    case 4: return copy_tile_as<uint32_t>(to, step_to, from, step_from, rows, columns);
    default: return copy_tile_as<uint64_t>(to, step_to, from, step_from, rows, columns);
  }
}

}  // namespace

// A place in the loop: the index of every dimension, and the operands' addresses of the start of the innermost row.
struct Loop::Cursor {
  const Loop& loop;
  int64_t index[kMaxDims];
  char* row[kMaxOperands];

  Cursor(const Loop& l, int64_t flat) : loop(l) {
    for (int k = 0; k < loop.num_operands_; ++k) row[k] = loop.operands_[k].data;
    for (int d = loop.num_dims_ - 1; d >= 0; --d) {
      index[d] = flat % loop.sizes_[d];
      flat /= loop.sizes_[d];
      if (d < loop.num_dims_ - 1)
        for (int k = 0; k < loop.num_operands_; ++k) row[k] += index[d] * loop.operands_[k].strides[d];
    }
  }
  int64_t column() const { return index[loop.num_dims_ - 1]; }
  int64_t left_in_row() const { return loop.sizes_[loop.num_dims_ - 1] - column(); }
  int64_t step(int k) const { return loop.operands_[k].strides[loop.num_dims_ - 1]; }
  char* at(int k) const { return row[k] + column() * step(k); }

  void advance(int64_t n) {  // by at most left_in_row()
    int d = loop.num_dims_ - 1;
    if ((index[d] += n) < loop.sizes_[d]) return;
    index[d] = 0;
    while (--d >= 0) {
      for (int k = 0; k < loop.num_operands_; ++k) row[k] += loop.operands_[k].strides[d];
      if (++index[d] < loop.sizes_[d]) return;
      for (int k = 0; k < loop.num_operands_; ++k) row[k] -= loop.operands_[k].strides[d] * loop.sizes_[d];
      index[d] = 0;
    }
  }
};

Loop::Loop(const Shape& shape) : num_dims_(shape.num_dims()) {
  for (int d = 0; d < num_dims_; ++d) num_elements_ *= sizes_[d] = shape[d];
}

void Loop::add(char* data, const Tensor& t) {
  WEFT_ASSERT(num_operands_ < kMaxOperands);
  Operand& operand = operands_[num_operands_++];
  operand.data = data;
  operand.bytes = static_cast<int64_t>(size_of(t.dtype()));
  if (t.is_contiguous() && t.num_elements() == num_elements_) {
    // Sizes of 1 may be missing, so the strides are the loop's own.
    int64_t stride = operand.bytes;
    for (int d = num_dims_ - 1; d >= 0; --d) {
      operand.strides[d] = stride;
      stride *= sizes_[d];
    }
    return;
  }
  all_dense_ = false;
  int shift = num_dims_ - t.num_dims();
  for (int d = 0; d < num_dims_; ++d) {
    bool repeats = d < shift || t.shape()[d - shift] == 1;
    operand.strides[d] = repeats ? 0 : t.strides()[d - shift] * operand.bytes;
  }
}

// Drops sizes of 1 and merges neighbours that every operand walks as one.
void Loop::collapse() {
  int n = 0;
  for (int d = 0; d < num_dims_; ++d) {
    if (sizes_[d] == 1) continue;
    bool merges = n > 0;
    for (int k = 0; merges && k < num_operands_; ++k)
      merges = operands_[k].strides[n - 1] == operands_[k].strides[d] * sizes_[d];
    int to = merges ? n - 1 : n++;
    sizes_[to] = (merges ? sizes_[to] : 1) * sizes_[d];
    for (int k = 0; k < num_operands_; ++k) operands_[k].strides[to] = operands_[k].strides[d];
  }
  if (n == 0) {
    sizes_[0] = 1;
    for (int k = 0; k < num_operands_; ++k) operands_[k].strides[0] = operands_[k].bytes;
    n = 1;
  }
  num_dims_ = n;
}

void Loop::run_dense(Chunk chunk, const void* functor) const {
  auto body = [&](int64_t begin, int64_t end) {
    char* at[kMaxOperands];
    for (int k = 0; k < num_operands_; ++k) at[k] = operands_[k].data + begin * operands_[k].bytes;
    chunk(functor, at, end - begin);
  };
  if (num_elements_ <= kGrain) body(0, num_elements_);
  else parallel_for(num_elements_, kGrain, body);
}

void Loop::run(Chunk chunk, const void* functor) {
  if (num_elements_ == 0) return;
  if (all_dense_) return run_dense(chunk, functor);
  collapse();
  bool is_one_row = num_dims_ == 1;
  for (int k = 0; is_one_row && k < num_operands_; ++k) is_one_row = operands_[k].strides[0] == operands_[k].bytes;
  if (is_one_row) return run_dense(chunk, functor);
  parallel_for(num_elements_, kGrain, [&](int64_t begin, int64_t end) {
    if (sizes_[num_dims_ - 1] >= kMinRow) run_rows(chunk, functor, begin, end);
    else run_blocks(chunk, functor, begin, end);
  });
}

// Long rows: contiguous operands are used where they lie, the others go through a buffer.
void Loop::run_rows(Chunk chunk, const void* functor, int64_t begin, int64_t end) const {
  alignas(64) Buffers buffers;
  char* at[kMaxOperands];
  bool needs_buffer = false;
  for (int k = 0; k < num_operands_; ++k) needs_buffer |= operands_[k].strides[num_dims_ - 1] != operands_[k].bytes;
  Cursor cursor(*this, begin);
  while (begin < end) {
    int64_t n = std::min(end - begin, cursor.left_in_row());
    if (needs_buffer) n = std::min(n, kBlock);
    for (int k = 0; k < num_operands_; ++k) {
      int64_t bytes = operands_[k].bytes, step = cursor.step(k);
      at[k] = step == bytes ? cursor.at(k) : buffers[k];
      if (step != bytes && k >= num_outputs_) copy_strided(at[k], bytes, cursor.at(k), step, n, bytes);
    }
    chunk(functor, at, n);
    for (int k = 0; k < num_outputs_; ++k)
      if (cursor.step(k) != operands_[k].bytes)
        copy_strided(cursor.at(k), cursor.step(k), at[k], operands_[k].bytes, n, operands_[k].bytes);
    cursor.advance(n);
    begin += n;
  }
}

// Short rows: operands that are not dense are gathered across rows into full blocks.
void Loop::run_blocks(Chunk chunk, const void* functor, int64_t begin, int64_t end) const {
  alignas(64) Buffers buffers;
  char* at[kMaxOperands];
  bool dense[kMaxOperands];
  for (int k = 0; k < num_operands_; ++k) dense[k] = is_dense(k);
  Cursor read(*this, begin), write = read;
  for (; begin < end; begin += kBlock) {
    int64_t n = std::min(end - begin, kBlock);
    for (int k = 0; k < num_operands_; ++k)
      at[k] = dense[k] ? operands_[k].data + begin * operands_[k].bytes : buffers[k];
    for (int64_t done = 0; done < n;) {
      int64_t run = std::min(n - done, read.left_in_row());
      for (int k = num_outputs_; k < num_operands_; ++k) {
        int64_t bytes = operands_[k].bytes;
        if (!dense[k]) copy_strided(at[k] + done * bytes, bytes, read.at(k), read.step(k), run, bytes);
      }
      read.advance(run);
      done += run;
    }
    chunk(functor, at, n);
    for (int64_t done = 0; done < n;) {
      int64_t run = std::min(n - done, write.left_in_row());
      for (int k = 0; k < num_outputs_; ++k) {
        int64_t bytes = operands_[k].bytes;
        if (!dense[k]) copy_strided(write.at(k), write.step(k), at[k] + done * bytes, bytes, run, bytes);
      }
      write.advance(run);
      done += run;
    }
  }
}

bool Loop::is_dense(int operand) const {
  int64_t stride = operands_[operand].bytes;
  for (int d = num_dims_ - 1; d >= 0; --d) {
    if (operands_[operand].strides[d] != stride) return false;
    stride *= sizes_[d];
  }
  return true;
}

void Loop::copy() {
  if (num_elements_ == 0) return;
  collapse();
  // Contiguous in one dimension of `from` and in another one of `to`: a transpose.
  int last = num_dims_ - 1;
  if (operands_[0].strides[last] == operands_[0].bytes && sizes_[last] >= 8)
    for (int d = 0; d < last; ++d)
      if (operands_[1].strides[d] == operands_[1].bytes && sizes_[d] >= 8) return copy_transposed(d);
  if (num_elements_ <= kGrain) copy_range(0, num_elements_);
  else parallel_for(num_elements_, kGrain, [&](int64_t begin, int64_t end) { copy_range(begin, end); });
}

// `from` is contiguous along dimension `along`, `to` along the last one. An item is a strip of tiles: one cache line of `from`
// wide, as long as the last dimension.
void Loop::copy_transposed(int along) const {
  int last = num_dims_ - 1;
  const int64_t bytes = operands_[0].bytes, edge = 64 / bytes, num_strips = (sizes_[along] + edge - 1) / edge;
  int64_t num_items = num_elements_ / sizes_[along] / sizes_[last] * num_strips;
  parallel_for(num_items, std::max<int64_t>(1, kGrain / (edge * sizes_[last])), [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      int64_t column = item % num_strips * edge, rest = item / num_strips;
      int64_t columns = std::min(edge, sizes_[along] - column);
      char* to = operands_[0].data + column * operands_[0].strides[along];
      const char* from = operands_[1].data + column * bytes;
      for (int d = last - 1; d >= 0; --d) {
        if (d == along) continue;
        to += rest % sizes_[d] * operands_[0].strides[d];
        from += rest % sizes_[d] * operands_[1].strides[d];
        rest /= sizes_[d];
      }
      for (int64_t row = 0; row < sizes_[last]; row += edge)
        copy_tile(to + row * bytes, operands_[0].strides[along], from + row * operands_[1].strides[last],
                  operands_[1].strides[last], std::min(edge, sizes_[last] - row), columns, bytes);
    }
  });
}

void Loop::copy_range(int64_t begin, int64_t end) const {
  Cursor cursor(*this, begin);
  while (begin < end) {
    int64_t n = std::min(end - begin, cursor.left_in_row());
    copy_strided(cursor.at(0), cursor.step(0), cursor.at(1), cursor.step(1), n, operands_[0].bytes);
    cursor.advance(n);
    begin += n;
  }
}

}  // namespace weft::cpu
