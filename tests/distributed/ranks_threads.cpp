#include "tests/distributed/ranks.h"

namespace weft::test {

std::vector<int> rank_counts() { return {1, 2, 3, 4, 6, 8}; }

void run_ranks(int ranks, const std::function<void(dist::Communicator&)>& f) { dist::run_thread_ranks(ranks, f); }

}  // namespace weft::test
