// Look-ups: out[i] = table[ids[i]], y[o, i, j] = x[o, index[o, i, j], j]; joins of tensors. The sums that are their backwards
// are in scatter.cu.
#include <algorithm>
#include <bit>

#include "ops/cuda/cut.h"
#include "ops/cuda/ids.cuh"
#include "ops/cuda/select.h"

namespace weft::cuda {

namespace {

// The largest access that every number of bytes given allows: 16, 8, 4, 2 or 1.
template <class... N>
int64_t unit_of(N... bytes) {
  uint64_t all = (uint64_t{16} | ... | static_cast<uint64_t>(bytes));
  return int64_t{1} << std::countr_zero(all);
}

// Calls f<Unit>() for an unsigned type of `bytes` bytes.
template <class F>
void with_unit(int64_t bytes, F&& f) {
  if (bytes == 16) f.template operator()<Group<uint64_t, 2>>();
  else if (bytes == 8) f.template operator()<uint64_t>();
  else if (bytes == 4) f.template operator()<uint32_t>();
  else if (bytes == 2) f.template operator()<uint16_t>();
  else f.template operator()<uint8_t>();
}

template <class Unit>
__device__ __forceinline__ Unit all_bits() {
  return static_cast<Unit>(~Unit{0});
}
template <>
__device__ __forceinline__ Group<uint64_t, 2> all_bits<Group<uint64_t, 2>>() {
  return {~uint64_t{0}, ~uint64_t{0}};
}

// Rows of `width` units; threads side by side move one row.
template <class Unit>
__global__ void __launch_bounds__(kThreads)
    take_rows(const Unit* table, int64_t stride, int64_t table_rows, Ids ids, int64_t count, int64_t width, Unit* out) {
  for (int64_t i = int64_t{blockIdx.x} * blockDim.y + threadIdx.y; i < count; i += int64_t{gridDim.x} * blockDim.y) {
    const int64_t id = ids[i];
    const bool is_inside = 0 <= id && id < table_rows;
    const Unit* from = table + (is_inside ? id * stride : 0);
    for (int64_t c = threadIdx.x; c < width; c += blockDim.x)
      out[i * width + c] = is_inside ? from[c] : all_bits<Unit>();
  }
}

// `inner` elements side by side have indices of their own. c: x as [outer, n, inner].
template <class Unit, class Count>
__global__ void __launch_bounds__(kThreads)
    gather_kernel(const Unit* x, Cut c, Ids index, int64_t size, Count total, Unit* y) {
  for (int64_t i = thread_index(); i < static_cast<int64_t>(total); i += thread_count()) {
    const Count row = static_cast<Count>(i) / static_cast<Count>(c.inner);
    const auto j = static_cast<int64_t>(static_cast<Count>(i) % static_cast<Count>(c.inner));
    const auto o = static_cast<int64_t>(row / static_cast<Count>(size));
    const int64_t at = index[i];
    y[i] = 0 <= at && at < c.n ? x[o * c.stride_outer + at * c.stride_n + j * c.stride_inner] : all_bits<Unit>();
  }
}

}  // namespace

void embedding(Tensor& out, const Tensor& table, const Tensor& ids) {
  if (out.num_elements() == 0) return;
  Tensor source = table.num_elements() == 0 || table.strides()[1] == 1 || table.size(1) == 1 ? table : dense(table);
  Tensor rows = dense(ids);
  auto element = static_cast<int64_t>(size_of(table.dtype()));
  int64_t row_bytes = element * table.size(1), step = element * source.strides()[0];
  const void* from = source.raw();
  void* to = out.mutable_raw();
  int64_t unit = unit_of(row_bytes, step, reinterpret_cast<uintptr_t>(from), reinterpret_cast<uintptr_t>(to));
  with_unit(unit, [&]<class Unit>() {
    int64_t width = row_bytes / unit, count = ids.num_elements();
    auto side = static_cast<unsigned>(std::min<int64_t>(std::bit_ceil(static_cast<uint64_t>(width)), kThreads));
    dim3 block(side, kThreads / side);
    launch("embedding", take_rows<Unit>, grid_of(count, block.y), block, 0, stream_of(out),
           static_cast<const Unit*>(from), step / unit, table.size(0), Ids(rows), count, width, static_cast<Unit*>(to));
  });
}

void gather(Tensor& out, const Tensor& x, int dim, const Tensor& index) {
  if (out.num_elements() == 0) return;
  Tensor source = x, at = dense(index);
  Cut c;
  if (x.num_elements() == 0) {  // every index is outside
    c.n = 0;
    for (int d = dim + 1; d < x.num_dims(); ++d) c.inner *= x.shape()[d];
  } else if (!cut(x, dim, dim + 1, c)) {
    source = dense(x);
    cut(source, dim, dim + 1, c);
  }
  int64_t size = out.size(dim), total = out.num_elements();
  with_unit(static_cast<int64_t>(size_of(x.dtype())), [&]<class Unit>() {
    auto run = [&]<class Count>(Count count) {
      launch("gather", gather_kernel<Unit, Count>, grid_of(out.num_elements()), kThreads, 0, stream_of(out),
             static_cast<const Unit*>(source.raw()), c, Ids(at), size, count, static_cast<Unit*>(out.mutable_raw()));
    };
    if (total >> 32) run(static_cast<uint64_t>(total));
    else run(static_cast<uint32_t>(total));
  });
}

void concatenate(Tensor& out, std::span<const Tensor> parts, int dim) {
  int64_t begin = 0;
  for (const Tensor& part : parts) {
    Tensor place = out.slice(dim, begin, begin + part.size(dim));
    if (part.num_elements() > 0) copy(place, part);
    begin += part.size(dim);
  }
}

}  // namespace weft::cuda
