// Ranks that are threads of one process have books of their own: Allocator::stats() and reset_peak() of such a thread are those of its rank.
#pragma once

namespace weft {

int memory_rank();  // 0: this thread sees the whole process; ranks that are threads are 1, 2, ...
void set_memory_rank(int rank);

}  // namespace weft
