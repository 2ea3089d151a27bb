#include "ops/cpu/random.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "ops/cpu/copy.h"
#include "weft/core/parallel.h"

namespace weft::cpu {

namespace {

constexpr int64_t kGrain = 4096;  // elements; a number costs about 20 ns

template <class Value>
void fill_with(Tensor& x, const Value& value) {
  if (!x.is_contiguous()) {
    Tensor dense = Tensor::empty(x.shape(), x.dtype());
    fill_with(dense, value);
    return copy(x, dense);
  }
  with_type<float, BFloat16, double>(x.dtype(), "fill", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using Computed = std::conditional_t<std::same_as<T, double>, double, float>;
    T* to = x.mutable_data<T>();
    parallel_for(x.num_elements(), kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) to[i] = T(static_cast<Computed>(value(static_cast<uint64_t>(i))));
    });
  });
}

}  // namespace

void fill_normal(Tensor& x, Rng rng, double mean, double std) {
  fill_with(x, [=](uint64_t i) { return mean + std * static_cast<double>(rng.normal(i)); });
}

void fill_uniform(Tensor& x, Rng rng, double low, double high) {
  fill_with(x, [=](uint64_t i) { return low + (high - low) * static_cast<double>(rng.uniform(i)); });
}

void dropout(Tensor& y, const Tensor& x, const Tensor& positions, double p, Rng rng, int64_t first_row) {
  int64_t tokens = x.size(1), dim = x.size(2);
  const int32_t* position = positions.data<int32_t>();
  with_type<float, BFloat16, double>(x.dtype(), "dropout", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using Computed = std::conditional_t<std::same_as<T, double>, double, float>;
    const T* from = x.data<T>();
    T* to = y.mutable_data<T>();
    const auto factor = static_cast<Computed>(1 / (1 - p));
    // uniform < p  <=>  24 bits < ceil(p * 2^24)
    const auto dropped = static_cast<uint32_t>(std::ceil(p * 0x1p24));
    parallel_for(x.size(0) * tokens, std::max<int64_t>(1, kGrain / std::max<int64_t>(dim, 1)), [&](int64_t begin, int64_t end) {
      for (int64_t token = begin; token < end; ++token) {
        uint64_t high = static_cast<uint64_t>(static_cast<uint32_t>(position[token])) << 32;
        auto row = static_cast<uint64_t>(first_row + token / tokens);
        for (int64_t d = 0; d < dim; d += 4) {
          auto words = rng.bits(high | static_cast<uint64_t>(d / 4), row);
          for (int64_t k = 0; k < std::min<int64_t>(4, dim - d); ++k) {
            int64_t i = token * dim + d + k;
            bool is_kept = (words[static_cast<size_t>(k)] >> 8) >= dropped;
            to[i] = T(is_kept ? static_cast<Computed>(from[i]) * factor : Computed(0));
          }
        }
      }
    });
  });
}

}  // namespace weft::cpu
