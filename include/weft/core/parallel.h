// The one thread pool (OpenMP, shared with oneDNN). Work is cut into the same pieces for the same n, grain and thread count,
// so results repeat bit for bit.
#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>

namespace weft {

int num_threads();
void set_num_threads(int n);  // for this thread's loops; also what oneDNN uses

namespace detail {
void parallel_run(int64_t n, int64_t grain, void* context, void (*body)(void*, int64_t begin, int64_t end));
}

// Calls f(begin, end) on contiguous pieces of [0, n), at least `grain` long each (the last may be shorter); runs
// inline when one piece is enough or inside another parallel_for. An exception in f is rethrown to the caller.
template <class F>
void parallel_for(int64_t n, int64_t grain, F&& f) {
  using Body = std::remove_reference_t<F>;
  detail::parallel_run(n, grain, const_cast<void*>(static_cast<const void*>(std::addressof(f))),
                       [](void* context, int64_t begin, int64_t end) { (*static_cast<Body*>(context))(begin, end); });
}

// Calls f(i) for i in [0, n), handed out one by one in order (dynamic): for items of unequal cost that write disjoint results.
namespace detail {
void parallel_items_run(int64_t n, void* context, void (*body)(void*, int64_t index));
}
template <class F>
void parallel_items(int64_t n, F&& f) {
  using Body = std::remove_reference_t<F>;
  detail::parallel_items_run(n, const_cast<void*>(static_cast<const void*>(std::addressof(f))),
                             [](void* context, int64_t index) { (*static_cast<Body*>(context))(index); });
}

}  // namespace weft
