// The only thread pool (OpenMP, shared with oneDNN). For the same n, grain and number of threads, work is always cut into the same pieces,
// so that results repeat bit for bit.
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

// Calls f(begin, end) on contiguous pieces of [0, n). Each piece has at least `grain` elements; only the last may have fewer. If there is
// one piece only, or inside another parallel_for, f runs on the calling thread. An exception in f is rethrown to the caller.
template <class F>
void parallel_for(int64_t n, int64_t grain, F&& f) {
  using Body = std::remove_reference_t<F>;
  detail::parallel_run(n, grain, const_cast<void*>(static_cast<const void*>(std::addressof(f))),
                       [](void* context, int64_t begin, int64_t end) { (*static_cast<Body*>(context))(begin, end); });
}

// Calls f(i) for i in [0, n). Each thread takes the next i when it is free. For items of unequal cost that write separate results.
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
