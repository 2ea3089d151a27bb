#include "distributed/comm/reduce.h"

#include <algorithm>

#include "weft/core/parallel.h"

namespace weft::dist {

namespace {

constexpr int64_t kBlock = 512;  // its sums stay in the cache
constexpr int64_t kGrain = int64_t{1} << 16;

template <class T, class Combine>
void reduce_as(std::span<const void* const> inputs, int64_t count, void* to, Combine combine) {
  using Sum = std::conditional_t<std::is_same_v<T, BFloat16>, float, T>;
  parallel_for(count, kGrain, [&](int64_t first, int64_t last) {
    Sum sums[kBlock];
    for (int64_t begin = first; begin < last; begin += kBlock) {
      const int64_t n = std::min(kBlock, last - begin);
      const auto* x = static_cast<const T*>(inputs[0]) + begin;
      for (int64_t i = 0; i < n; ++i) sums[i] = static_cast<Sum>(x[i]);
      for (size_t r = 1; r < inputs.size(); ++r) {
        x = static_cast<const T*>(inputs[r]) + begin;
        for (int64_t i = 0; i < n; ++i) sums[i] = combine(sums[i], static_cast<Sum>(x[i]));
      }
      for (int64_t i = 0; i < n; ++i) static_cast<T*>(to)[begin + i] = static_cast<T>(sums[i]);
    }
  });
}

}  // namespace

void reduce_in_order(DType dtype, Reduce reduce, std::span<const void* const> inputs, int64_t count, void* to) {
  with_type<float, BFloat16, double, int64_t, int32_t, uint8_t, bool>(dtype, "all_reduce", [&](auto tag) {
    using T = typename decltype(tag)::type;
    switch (reduce) {
      case Reduce::sum:
        return reduce_as<T>(inputs, count, to, [](auto a, auto b) { return static_cast<decltype(a)>(a + b); });
      case Reduce::max: return reduce_as<T>(inputs, count, to, [](auto a, auto b) { return std::max(a, b); });
      case Reduce::min: return reduce_as<T>(inputs, count, to, [](auto a, auto b) { return std::min(a, b); });
    }
  });
}

}  // namespace weft::dist
