#include "weft/core/parallel.h"

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <exception>

#include "src/core/rank_memory.h"
#include "weft/core/dry_run.h"
#include "weft/core/error.h"
#include "weft/core/scope.h"

namespace weft {

namespace {

// Keeps the first exception of a parallel region; letting it leave an OpenMP region would end the process.
class FirstException {
 public:
  template <class F>
  void guard(F&& f) {
    if (has_.load(std::memory_order_relaxed)) return;
    try {
      f();
    } catch (...) {
      if (!has_.exchange(true)) caught_ = std::current_exception();
    }
  }
  void rethrow() const {
    if (caught_) std::rethrow_exception(caught_);
  }

 private:
  std::atomic<bool> has_{false};
  std::exception_ptr caught_;
};

}  // namespace

// OpenMP starts no more threads than its limit (OMP_THREAD_LIMIT), whatever it was asked for.
int num_threads() { return std::min(omp_get_max_threads(), omp_get_thread_limit()); }

void set_num_threads(int n) {
  WEFT_CHECK(n >= 1, str("set_num_threads: ", n), "use at least one thread");
  omp_set_num_threads(n);
}

namespace detail {

void parallel_run(int64_t n, int64_t grain, void* context, void (*body)(void*, int64_t, int64_t)) {
  if (n <= 0 || is_dry_run()) return;
  int64_t pieces =
      std::min<int64_t>(num_threads(), (n + std::max<int64_t>(grain, 1) - 1) / std::max<int64_t>(grain, 1));
  if (pieces <= 1 || omp_in_parallel()) return body(context, 0, n);
  FirstException first;
  const RankLabel label = rank_label();
  const ThreadMemory memory;
#pragma omp parallel num_threads(static_cast <int>(pieces))
  {
    int64_t count = omp_get_num_threads(), me = omp_get_thread_num();
    if (me) set_rank_label(label), memory.apply();
    int64_t length = (n + count - 1) / count;
    int64_t begin = me * length, end = std::min(n, begin + length);
    if (begin < end) first.guard([&] { body(context, begin, end); });
  }
  first.rethrow();
}

void parallel_items_run(int64_t n, void* context, void (*body)(void*, int64_t)) {
  if (n <= 0 || is_dry_run()) return;
  int threads = static_cast<int>(std::min<int64_t>(num_threads(), n));
  if (threads <= 1 || omp_in_parallel()) {
    for (int64_t i = 0; i < n; ++i) body(context, i);
    return;
  }
  FirstException first;
  const RankLabel label = rank_label();
  const ThreadMemory memory;
#pragma omp parallel num_threads(threads)
  {
    if (omp_get_thread_num()) set_rank_label(label), memory.apply();
#pragma omp for schedule(monotonic : dynamic, 1)
    for (int64_t i = 0; i < n; ++i) first.guard([&] { body(context, i); });
  }
  first.rethrow();
}

}  // namespace detail
}  // namespace weft
