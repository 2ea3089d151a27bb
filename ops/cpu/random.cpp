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
    Tensor dense = Tensor::empty(x.shape(), x.dtype(), Device::cpu());
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
  const int64_t tokens = x.size(1), dim = x.size(2), bytes = dim * static_cast<int64_t>(size_of(x.dtype()));
  const int32_t* position = positions.data<int32_t>();
  const char* from = static_cast<const char*>(x.raw());
  char* to = static_cast<char*>(y.mutable_raw());
  // uniform < p  <=>  its 24 bits < ceil(p * 2^24)
  const auto dropped = static_cast<uint32_t>(std::ceil(p * 0x1p24));
  parallel_for(
      x.size(0) * tokens, std::max<int64_t>(1, kGrain / std::max<int64_t>(dim, 1)), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          DropoutToken token{dim,
                             static_cast<uint32_t>(position[i]),
                             static_cast<uint64_t>(first_row + i / tokens),
                             rng.key(),
                             dropped,
                             1 / (1 - p)};
          with_isa([&]<Isa I>() { RandomKernels<I>::dropout(x.dtype(), token, from + i * bytes, to + i * bytes); });
        }
      });
}

}  // namespace weft::cpu
