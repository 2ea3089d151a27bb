// Copies are split by rows; sums are split so that one thread owns every element it adds to and adds in index order, which
// makes results independent of the thread count.
#include "ops/cpu/select.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "ops/cpu/dense.h"
#include "weft/core/error.h"
#include "weft/core/parallel.h"

namespace weft::cpu {

namespace {

constexpr int64_t kGrain = 16384;

// Indices as row-major i64, each checked against 0 <= index < bound.
Tensor checked_indices(const Tensor& index, int64_t bound, std::string_view op, std::string_view what) {
  Tensor plain = dense(index);
  if (plain.dtype() == kI32) {
    Tensor wide = Tensor::empty(plain.shape(), kI64, Device::cpu());
    copy(wide, plain);
    plain = wide;
  }
  const int64_t* at = plain.data<int64_t>();
  for (int64_t i = 0; i < plain.num_elements(); ++i)
    WEFT_CHECK(0 <= at[i] && at[i] < bound,
               str(op, ": ", what, " ", at[i], " at place ", i, " of ", index, " is out of range"),
               str("use 0 <= ", what, " < ", bound));
  return plain;
}

// [outer, size, inner]: a shape seen from one of its dimensions.
struct Split {
  int64_t outer = 1, size, inner = 1;

  Split(const Shape& shape, int dim) : size(shape[dim]) {
    for (int i = 0; i < dim; ++i) outer *= shape[i];
    for (int i = dim + 1; i < shape.num_dims(); ++i) inner *= shape[i];
  }
};

template <class T>
void gather_rows(T* y, const T* x, const int64_t* index, Split to, int64_t from_size) {
  parallel_for(to.outer * to.size, std::max<int64_t>(1, kGrain / std::max<int64_t>(to.inner, 1)),
               [&](int64_t begin, int64_t end) {
                 for (int64_t row = begin; row < end; ++row) {
                   const T* base = x + row / to.size * from_size * to.inner;
                   for (int64_t j = 0; j < to.inner; ++j)
                     y[row * to.inner + j] = base[index[row * to.inner + j] * to.inner + j];
                 }
               });
}

// y[o, index[o, i, j], j] += x[o, i, j]; a thread owns lanes (o, j).
template <class Sum, class T>
void scatter_add_lanes(Sum* y, const T* x, const int64_t* index, Split from, int64_t to_size) {
  int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(from.size, 1));
  parallel_for(from.outer * from.inner, grain, [&](int64_t begin, int64_t end) {
    for (int64_t lane = begin; lane < end;) {
      int64_t o = lane / from.inner, j0 = lane % from.inner, j1 = std::min(from.inner, j0 + end - lane);
      for (int64_t i = 0; i < from.size; ++i) {
        int64_t row = (o * from.size + i) * from.inner;
        for (int64_t j = j0; j < j1; ++j)
          y[(o * to_size + index[row + j]) * from.inner + j] += static_cast<Sum>(x[row + j]);
      }
      lane += j1 - j0;
    }
  });
}

void set_zero(Tensor& t) {
  auto* bytes = static_cast<char*>(t.mutable_raw());
  parallel_for(static_cast<int64_t>(t.num_bytes()), int64_t{1} << 16,
               [&](int64_t begin, int64_t end) { std::memset(bytes + begin, 0, static_cast<size_t>(end - begin)); });
}

template <class T>
struct Candidate {
  T value;
  int64_t index;
};

// Larger values first, NaN before all numbers, equal values by index: a total order, so any selection gives one answer.
template <class T>
bool comes_first(const Candidate<T>& a, const Candidate<T>& b) {
  bool a_is_nan = std::isnan(a.value), b_is_nan = std::isnan(b.value);
  if (a_is_nan != b_is_nan) return a_is_nan;
  if (!a_is_nan && a.value != b.value) return a.value > b.value;
  return a.index < b.index;
}

}  // namespace

void embedding(Tensor& out, const Tensor& table, const Tensor& ids) {
  Tensor rows = checked_indices(ids, table.size(0), "embedding", "id");
  if (out.num_elements() == 0) return;
  Tensor source = table.strides()[1] == 1 || table.size(1) == 1 ? table : dense(table);
  size_t element = size_of(table.dtype()), row_bytes = element * static_cast<size_t>(table.size(1));
  int64_t step = source.strides()[0] * static_cast<int64_t>(element);
  const auto* from = static_cast<const char*>(source.raw());
  auto* to = static_cast<char*>(out.mutable_raw());
  const int64_t* id = rows.data<int64_t>();
  parallel_for(rows.num_elements(), std::max<int64_t>(1, kGrain / table.size(1)), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      std::memcpy(to + static_cast<size_t>(i) * row_bytes, from + id[i] * step, row_bytes);
  });
}

namespace {

// The places of ids, those of one id together and in order: id r is at order[first[r]] .. order[first[r + 1] - 1].
struct Occurrences {
  Tensor memory;
  int64_t *first, *order;

  Occurrences(const int64_t* id, int64_t count, int64_t rows)
      : memory(Tensor::zeros({2 * rows + 1 + count}, kI64, Device::cpu())),
        first(memory.mutable_data<int64_t>()),
        order(first + 2 * rows + 1) {
    for (int64_t i = 0; i < count; ++i) ++first[id[i] + 1];
    for (int64_t r = 0; r < rows; ++r) first[r + 1] += first[r];
    int64_t* next = first + rows + 1;
    std::copy_n(first, rows, next);
    for (int64_t i = 0; i < count; ++i) order[next[id[i]]++] = i;
  }
};

}  // namespace

// A thread owns columns: rows are unequally popular, columns are not. A popular row is summed in pieces, and they in f64, so that the
// error does not grow with the number of its ids.
void embedding_backward(Tensor& dtable, const Tensor& dy, const Tensor& ids) {
  constexpr int64_t kPiece = 32, kStrip = 64;  // rows and columns that are added up together
  Tensor rows = checked_indices(ids, dtable.size(0), "embedding_backward", "id");
  set_zero(dtable);
  Tensor source = dense(dy);
  int64_t count = rows.num_elements(), dim = dtable.size(1);
  const Occurrences found(rows.data<int64_t>(), count, dtable.size(0));
  with_type<float, BFloat16, double>(dy.dtype(), "embedding_backward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using Sum = std::conditional_t<std::same_as<T, double>, double, float>;
    const T* x = source.data<T>();
    Sum* sum = dtable.mutable_data<Sum>();
    auto add_strip = [&](Sum* to, int64_t c0, int64_t width, const int64_t* at, int64_t n) {
      double total[kStrip] = {};
      for (int64_t first = 0; first < n; first += kPiece) {
        Sum piece[kStrip] = {};
        for (int64_t i = first; i < std::min(n, first + kPiece); ++i)
          for (int64_t c = 0; c < width; ++c) piece[c] += static_cast<Sum>(x[at[i] * dim + c0 + c]);
        for (int64_t c = 0; c < width; ++c) total[c] += static_cast<double>(piece[c]);
      }
      for (int64_t c = 0; c < width; ++c) to[c] = static_cast<Sum>(total[c]);
    };
    int64_t grain = std::max<int64_t>(16, kGrain / std::max<int64_t>(count, 1));
    parallel_for(dim, grain, [&](int64_t begin, int64_t end) {
      for (int64_t r = 0; r < dtable.size(0); ++r) {
        const int64_t n = found.first[r + 1] - found.first[r];
        for (int64_t c = begin; n > 0 && c < end; c += kStrip)
          add_strip(sum + r * dim + c, c, std::min(kStrip, end - c), found.order + found.first[r], n);
      }
    });
  });
}

void gather(Tensor& out, const Tensor& x, int dim, const Tensor& index) {
  Tensor at = checked_indices(index, x.size(dim), "gather", "index"), source = dense(x);
  if (out.num_elements() == 0) return;
  Split to(out.shape(), dim);
  auto run = [&](auto* y) {
    using T = std::remove_pointer_t<decltype(y)>;
    gather_rows(y, static_cast<const T*>(source.raw()), at.data<int64_t>(), to, x.size(dim));
  };
  void* y = out.mutable_raw();
  switch (size_of(x.dtype())) {
    case 1: return run(static_cast<uint8_t*>(y));
    case 2: return run(static_cast<uint16_t*>(y));
    case 4: return run(static_cast<uint32_t*>(y));
    default: return run(static_cast<uint64_t*>(y));
  }
}

void scatter_add(Tensor& out, int dim, const Tensor& index, const Tensor& x) {
  Tensor at = checked_indices(index, out.size(dim), "scatter_add", "index"), source = dense(x);
  // bf16 is summed in f32 and rounded once.
  Tensor sum = out.dtype() == kBF16 ? Tensor::empty(out.shape(), kF32, Device::cpu()) : out;
  set_zero(sum);
  if (x.num_elements() > 0) {
    Split from(x.shape(), dim);
    with_type<float, BFloat16, double>(x.dtype(), "scatter_add", [&](auto tag) {
      using T = typename decltype(tag)::type;
      using Sum = std::conditional_t<std::same_as<T, double>, double, float>;
      scatter_add_lanes(sum.mutable_data<Sum>(), source.data<T>(), at.data<int64_t>(), from, out.size(dim));
    });
  }
  if (out.dtype() == kBF16) {
    const float* s = sum.data<float>();
    BFloat16* y = out.mutable_data<BFloat16>();
    parallel_for(out.num_elements(), kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) y[i] = BFloat16(s[i]);
    });
  }
}

void topk(Tensor& values, Tensor& indices, const Tensor& x) {
  Tensor source = dense(x);
  int64_t size = x.size(-1), k = values.size(-1);
  if (values.num_elements() == 0) return;
  with_type<float, BFloat16, double>(x.dtype(), "topk", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using Value = std::conditional_t<std::same_as<T, double>, double, float>;
    const T* from = source.data<T>();
    T* best = values.mutable_data<T>();
    int64_t* at = indices.mutable_data<int64_t>();
    parallel_for(x.num_elements() / size, std::max<int64_t>(1, kGrain / size), [&](int64_t begin, int64_t end) {
      Tensor scratch = Tensor::empty({size * static_cast<int64_t>(sizeof(Candidate<Value>))}, kU8, Device::cpu());
      auto* candidates = static_cast<Candidate<Value>*>(scratch.mutable_raw());
      for (int64_t row = begin; row < end; ++row) {
        for (int64_t i = 0; i < size; ++i) candidates[i] = {static_cast<Value>(from[row * size + i]), i};
        std::partial_sort(candidates, candidates + k, candidates + size, comes_first<Value>);
        for (int64_t i = 0; i < k; ++i) {
          best[row * k + i] = from[row * size + candidates[i].index];
          at[row * k + i] = candidates[i].index;
        }
      }
    });
  });
}

void concatenate(Tensor& out, std::span<const Tensor> parts, int dim) {
  int64_t begin = 0;
  for (const Tensor& part : parts) {
    Tensor place = out.slice(dim, begin, begin + part.size(dim));
    copy(place, part);
    begin += part.size(dim);
  }
}

}  // namespace weft::cpu
