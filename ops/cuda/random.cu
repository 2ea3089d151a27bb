// Random values: the same Philox numbers as on the CPU (weft/core/rng.h), as a function of the element's global index.
#include "ops/cuda/elementwise.h"
#include "ops/cuda/loop.cuh"

namespace weft::cuda {

namespace {

__device__ std::array<uint32_t, 4> bits_of(uint64_t key, uint64_t index) {
  return philox({static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), 0, 0}, key);
}

struct Normal {
  uint64_t key;
  double mean, std;
  __device__ double operator()(uint64_t i) const {
    auto block = bits_of(key, i);
    double radius = sqrt(-2.0 * log(1.0 - static_cast<double>(uniform_from_bits(block[0]))));
    double angle = 2.0 * 3.14159265358979323846 * static_cast<double>(uniform_from_bits(block[1]));
    return mean + std * static_cast<double>(static_cast<float>(radius * cos(angle)));
  }
};

struct Uniform {
  uint64_t key;
  double low, high;
  __device__ double operator()(uint64_t i) const {
    return low + (high - low) * static_cast<double>(uniform_from_bits(bits_of(key, i)[0]));
  }
};

template <class T, class Value>
__global__ void fill_with(T* x, int64_t n, Value value) {
  for (int64_t i = thread_index(); i < n; i += thread_count())
    x[i] = from_compute<T>(static_cast<Compute<T>>(value(static_cast<uint64_t>(i))));
}

template <class Value>
void run_fill(std::string_view op, Tensor& x, const Value& value) {
  int64_t n = x.num_elements();
  if (n == 0) return;
  if (!x.is_contiguous()) {
    Tensor dense = Tensor::empty(x.shape(), x.dtype(), x.device());
    run_fill(op, dense, value);
    return copy(x, dense);
  }
  with_floating(x.dtype(), op, [&]<class T>() {
    launch(op, fill_with<T, Value>, grid_of(n), kThreads, 0, stream_of(x), x.mutable_data<T>(), n, value);
  });
}

// Element e of a token reads word e % 4 of counter {e / 4, position, row}: four elements per thread.
template <class T>
__global__ void dropout_kernel(T* y, const T* x, const int32_t* positions, int64_t tokens, int64_t dim, int64_t count,
                               uint64_t first_row, uint64_t key, uint32_t dropped, Compute<T> factor) {
  int64_t groups = (dim + 3) / 4;
  for (int64_t i = thread_index(); i < count * groups; i += thread_count()) {
    int64_t token = i / groups, group = i % groups;
    uint64_t row = first_row + static_cast<uint64_t>(token / tokens);
    auto words = philox({static_cast<uint32_t>(group), static_cast<uint32_t>(positions[token]),
                         static_cast<uint32_t>(row), static_cast<uint32_t>(row >> 32)},
                        key);
    for (int64_t k = 0; k < 4 && group * 4 + k < dim; ++k) {
      int64_t at = token * dim + group * 4 + k;
      bool is_kept = (words[static_cast<size_t>(k)] >> 8) >= dropped;
      y[at] = from_compute<T>(is_kept ? to_compute(x[at]) * factor : Compute<T>(0));
    }
  }
}

Tensor dense(const Tensor& x) {
  if (x.is_contiguous()) return x;
  Tensor y = Tensor::empty(x.shape(), x.dtype(), x.device());
  copy(y, x);
  return y;
}

}  // namespace

void fill_normal(Tensor& x, Rng rng, double mean, double std) {
  run_fill("fill_normal_", x, Normal{rng.key(), mean, std});
}
void fill_uniform(Tensor& x, Rng rng, double low, double high) {
  run_fill("fill_uniform_", x, Uniform{rng.key(), low, high});
}

void dropout(Tensor& y, const Tensor& x, const Tensor& positions, double p, Rng rng, int64_t first_row) {
  int64_t tokens = x.size(1), dim = x.size(2), count = x.size(0) * tokens;
  if (count * dim == 0) return;
  Tensor from = dense(x), at = dense(positions);
  // uniform < p  <=>  its 24 bits < ceil(p * 2^24)
  auto dropped = static_cast<uint32_t>(std::ceil(p * 0x1p24));
  with_floating(x.dtype(), "dropout", [&]<class T>() {
    launch("dropout", dropout_kernel<T>, grid_of(count * ((dim + 3) / 4)), kThreads, 0, stream_of(y),
           y.mutable_data<T>(), from.data<T>(), at.data<int32_t>(), tokens, dim, count,
           static_cast<uint64_t>(first_row), rng.key(), dropped, static_cast<Compute<T>>(1 / (1 - p)));
  });
}

}  // namespace weft::cuda
