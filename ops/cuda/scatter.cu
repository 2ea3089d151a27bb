// Sums by index, in the order of the index: dtable[ids[i]] += dy[i], y[o, index[o, i, j], j] += x[o, i, j].
// Rows that go to the same place are found by a stable sort. The sorted rows are cut into chunks that are added up side by side:
// a run of equal ids inside a chunk is written at once, its pieces in several chunks are added by a second kernel.
#include <algorithm>
#include <bit>

#include "ops/cuda/cut.h"
#include "ops/cuda/ids.cuh"
#include "ops/cuda/select.h"
#include "ops/cuda/sort.cuh"

namespace weft::cuda {

namespace {

constexpr int64_t kChunk = 32;  // rows

// The row of the result that row i goes to; `rows` if its id is outside.
struct RowKey {
  Ids ids;
  int64_t rows;
  __device__ __forceinline__ uint32_t operator()(uint32_t i) const {
    const int64_t id = ids[i];
    return static_cast<uint32_t>(0 <= id && id < rows ? id : rows);
  }
};
// The element of the result [outer, size, inner] that element i of [outer, from, inner] goes to; `cells` if its index is outside.
struct CellKey {
  Ids index;
  int64_t from, size, inner, cells;
  __device__ __forceinline__ uint32_t operator()(uint32_t i) const {
    const int64_t at = index[i];
    if (at < 0 || at >= size) return static_cast<uint32_t>(cells);
    const int64_t j = i % inner, o = i / (inner * from);
    return static_cast<uint32_t>((o * size + at) * inner + j);
  }
};

template <class Key, class T, class Sum>
struct Rows {
  Key key;
  const uint32_t* order;  // [count] rows of x, sorted by key
  const T* x;             // [count, width]
  int64_t count, width, stride, chunks;
  uint32_t outside;  // the key of rows that go nowhere
  Sum* out;          // [.., width], zeros
  Sum* pieces;       // [chunks, 2, width]: of a run that began before the chunk, of a run that goes on after it
};

// A thread adds up W columns of a chunk.
template <int W, class Key, class T, class Sum>
__global__ void __launch_bounds__(kThreads) add_chunks(Rows<Key, T, Sum> r) {
  constexpr int kBatch = 4;
  const int64_t column = (int64_t{blockIdx.y} * blockDim.x + threadIdx.x) * W;
  if (column >= r.width) return;
  for (int64_t chunk = int64_t{blockIdx.x} * blockDim.y + threadIdx.y; chunk < r.chunks;
       chunk += int64_t{gridDim.x} * blockDim.y) {
    const int64_t begin = chunk * kChunk, end = r.count - begin < kChunk ? r.count : begin + kChunk;
    uint32_t key = r.key(r.order[begin]);
    bool is_old = begin > 0 && r.key(r.order[begin - 1]) == key;  // the run began before the chunk
    Sum sum[W] = {};
    auto emit = [&](Sum* to) {
      Group<Sum, W> group;
#pragma unroll
      for (int k = 0; k < W; ++k) group.at[k] = sum[k];
      *reinterpret_cast<Group<Sum, W>*>(to + column) = group;
    };
    for (int64_t first = begin; first < end; first += kBatch) {
      Group<T, W> group[kBatch];
      uint32_t keys[kBatch];
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        if (first + b >= end) break;
        const uint32_t row = r.order[first + b];
        keys[b] = r.key(row);
        group[b] = *reinterpret_cast<const Group<T, W>*>(r.x + row * r.stride + column);
      }
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        if (first + b >= end) break;
        if (keys[b] != key) {
          if (is_old) emit(r.pieces + 2 * chunk * r.width);
          else if (key != r.outside) emit(r.out + key * r.width);
          key = keys[b];
          is_old = false;
#pragma unroll
          for (int k = 0; k < W; ++k) sum[k] = 0;
        }
#pragma unroll
        for (int k = 0; k < W; ++k) sum[k] += static_cast<Sum>(group[b].at[k]);
      }
    }
    const bool goes_on = end < r.count && r.key(r.order[end]) == key;
    if (is_old) emit(r.pieces + 2 * chunk * r.width);
    else if (goes_on) emit(r.pieces + (2 * chunk + 1) * r.width);
    else if (key != r.outside) emit(r.out + key * r.width);
  }
}

// The runs that go on after the chunk they began in. A frequent id has a long run: it is added in f64, so that the error does not grow.
template <class Key, class T, class Sum>
__global__ void __launch_bounds__(kThreads) join_chunks(Rows<Key, T, Sum> r) {
  const int64_t column = int64_t{blockIdx.y} * blockDim.x + threadIdx.x;
  if (column >= r.width) return;
  for (int64_t chunk = int64_t{blockIdx.x} * blockDim.y + threadIdx.y; chunk + 1 < r.chunks;
       chunk += int64_t{gridDim.x} * blockDim.y) {
    const int64_t begin = chunk * kChunk, end = begin + kChunk;
    const uint32_t key = r.key(r.order[end - 1]);
    if (key == r.outside || r.key(r.order[end]) != key) continue;
    const bool is_old = r.key(r.order[begin]) == key && begin > 0 && r.key(r.order[begin - 1]) == key;
    if (is_old) continue;  // began in an earlier chunk
    auto sum = static_cast<double>(r.pieces[(2 * chunk + 1) * r.width + column]);
    for (int64_t next = chunk + 1; next < r.chunks; ++next) {
      sum += static_cast<double>(r.pieces[2 * next * r.width + column]);
      const int64_t after = (next + 1) * kChunk;
      if (after >= r.count || r.key(r.order[after]) != key) break;
    }
    r.out[key * r.width + column] = static_cast<Sum>(sum);
  }
}

// Where an id was outside: NaN in row 0.
template <class Key, class T, class Sum>
__global__ void __launch_bounds__(kThreads) mark_outside(Rows<Key, T, Sum> r) {
  if (r.key(r.order[r.count - 1]) != r.outside) return;
  for (int64_t i = thread_index(); i < r.width; i += thread_count()) r.out[i] = static_cast<Sum>(NAN);
}

// out [out_rows, width], zeros before, += rows of x [count, width] by `key`.
template <class T, class Sum, class Key>
void add_rows(std::string_view op, Sum* out, int64_t out_rows, const T* x, int64_t count, int64_t width, Key key,
              Device device) {
  int bits = static_cast<int>(std::bit_width(static_cast<uint64_t>(out_rows)));
  Tensor order = sorted_by(op, key, bits, count, device);
  int64_t chunks = (count + kChunk - 1) / kChunk;
  Tensor pieces = Tensor::empty({chunks, 2, width}, dtype_of<Sum>(), device);
  Rows<Key, T, Sum> r{.key = key,
                      .order = static_cast<const uint32_t*>(order.raw()),
                      .x = x,
                      .count = count,
                      .width = width,
                      .stride = width,
                      .chunks = chunks,
                      .outside = static_cast<uint32_t>(out_rows),
                      .out = out,
                      .pieces = pieces.mutable_data<Sum>()};
  constexpr int wide = 16 / static_cast<int>(sizeof(Sum));  // of the sums
  bool is_wide = width % wide == 0 && is_aligned(out) && is_aligned(x, sizeof(T) * wide);
  cudaStream_t s = stream(device.index);
  auto run = [&](auto* kernel, int64_t columns) {
    auto side = static_cast<unsigned>(std::min<int64_t>(std::bit_ceil(static_cast<uint64_t>(columns)), kThreads));
    dim3 block(side, kThreads / side);
    dim3 grid(grid_of(chunks, block.y), static_cast<unsigned>((columns + side - 1) / side));
    launch(op, kernel, grid, block, 0, s, r);
  };
  if (is_wide) run(add_chunks<wide, Key, T, Sum>, width / wide);
  else run(add_chunks<1, Key, T, Sum>, width);
  run(join_chunks<Key, T, Sum>, width);
  launch(op, mark_outside<Key, T, Sum>, grid_of(width), kThreads, 0, s, r);
}

// A thread owns column (o, j) of the result and adds in the order of i. The result is zeros before.
template <class T, class Sum>
__global__ void __launch_bounds__(kThreads) add_columns(Sum* y, const T* x, CellKey cell, int64_t columns) {
  for (int64_t column = thread_index(); column < columns; column += thread_count()) {
    const int64_t o = column / cell.inner, j = column % cell.inner;
    bool is_outside = false;
    for (int64_t i = 0; i < cell.from; ++i) {
      const int64_t from = (o * cell.from + i) * cell.inner + j, at = cell.index[from];
      if (at < 0 || at >= cell.size) is_outside = true;
      else y[(o * cell.size + at) * cell.inner + j] += static_cast<Sum>(x[from]);
    }
    if (is_outside) y[o * cell.size * cell.inner + j] = static_cast<Sum>(NAN);
  }
}

template <class T>
using SumOf = Compute<T>;

}  // namespace

void embedding_backward(Tensor& dtable, const Tensor& dy, const Tensor& ids) {
  if (dtable.num_elements() == 0) return;
  fill(dtable, 0);
  int64_t count = ids.num_elements(), rows = dtable.size(0);
  if (count == 0) return;
  WEFT_CHECK(count < (int64_t{1} << 32) && rows < (int64_t{1} << 32) - 1,
             str("embedding_backward: ", count, " ids, ", rows, " rows"), "use fewer than 2^32 of each");
  Tensor source = dense(dy), plain = dense(ids);
  with_floating(dy.dtype(), "embedding_backward", [&]<class T>() {
    add_rows<T, SumOf<T>>("embedding_backward", dtable.mutable_data<SumOf<T>>(), rows, source.data<T>(), count,
                          dtable.size(1), RowKey{Ids(plain), rows}, dtable.device());
  });
}

void scatter_add(Tensor& out, int dim, const Tensor& index, const Tensor& x) {
  if (out.num_elements() == 0) return;
  Tensor sum = out.dtype() == kBF16 ? Tensor::empty(out.shape(), kF32, out.device()) : out;
  fill(sum, 0);
  if (x.num_elements() > 0) {
    constexpr int64_t kEnoughColumns = 16 * 1024, kShort = 64;
    Tensor source = dense(x), at = dense(index);
    int64_t inner = 1, from = x.size(dim), cells = out.num_elements();
    for (int d = dim + 1; d < x.num_dims(); ++d) inner *= x.shape()[d];
    int64_t columns = x.num_elements() / from;
    bool is_sortable = x.num_elements() < (int64_t{1} << 32) && cells < (int64_t{1} << 32) - 1;
    CellKey key{Ids(at), from, out.size(dim), inner, cells};
    with_floating(x.dtype(), "scatter_add", [&]<class T>() {
      using Sum = SumOf<T>;
      Sum* y = sum.mutable_data<Sum>();
      if (columns >= kEnoughColumns || from <= kShort || !is_sortable)
        return launch("scatter_add", add_columns<T, Sum>, grid_of(columns), kThreads, 0, stream_of(out), y,
                      source.data<T>(), key, columns);
      add_rows<T, Sum>("scatter_add", y, cells, source.data<T>(), x.num_elements(), 1, key, out.device());
    });
  }
  if (out.dtype() == kBF16) copy(out, sum);
}

}  // namespace weft::cuda
