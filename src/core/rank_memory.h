// Ranks that are threads of one process have books of their own: Allocator::stats() and reset_peak() of such a thread are those of its rank.
#pragma once

#include <cstdint>

namespace weft {

int memory_rank();  // 0: this thread sees the whole process; ranks that are threads are 1, 2, ...
void set_memory_rank(int rank);

int64_t& memory_limit(bool is_of_gpu);  // of this thread: MemoryLimit

// In whose books tensors of the thread that makes this object are, and within which limits. A thread that works for it calls apply().
struct ThreadMemory {
  int rank = memory_rank();
  int64_t cpu_limit = memory_limit(false), gpu_limit = memory_limit(true);

  void apply() const {
    set_memory_rank(rank);
    memory_limit(false) = cpu_limit;
    memory_limit(true) = gpu_limit;
  }
};

}  // namespace weft
