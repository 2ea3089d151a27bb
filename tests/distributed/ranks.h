// The ranks on which a test runs: threads of this process (ranks_threads.cpp), or the processes that mpirun started (ranks_mpi.cpp). The
// suite is the same.
#pragma once

#include <functional>
#include <vector>

#include "weft/comm/communicator.h"

namespace weft::test {

// Numbers of ranks to try. Under mpirun: all up to the number of processes.
std::vector<int> rank_counts();
// f on `ranks` ranks, at most the largest of rank_counts(). Under mpirun the processes beyond them wait until all are done.
void run_ranks(int ranks, const std::function<void(dist::Communicator&)>& f);

}  // namespace weft::test
