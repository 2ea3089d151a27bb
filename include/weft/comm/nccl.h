// Ranks on GPUs, joined by NCCL. In this version it has run against a test double of the library only, never on a GPU.
//   auto world = make_nccl_communicator(*mpi);                       // the same ranks, which mpirun started
//   auto world = make_nccl_communicator(launch.rendezvous, launch.rank, launch.size);   // those of torchrun or srun
// Calls return when the work is in NCCL's stream; the thread's later work on the GPU comes behind it. Reductions are NCCL's: the same bits
// in every run with one topology and the same NCCL_ALGO and NCCL_PROTO, but not taken in the order of ranks. A watchdog ends operations
// that fail or take too long; later calls then say which.
#pragma once

#include <memory>
#include <string>

#include "weft/comm/communicator.h"

namespace weft::dist {

bool has_nccl();  // whether this build has it; the library itself is opened when it is first wanted

struct NcclOptions {
  double timeout_s = 600;           // of one operation, and of the wait for all ranks at the start
  double look_s = 1;                // how often the watchdog looks
  Device device = Device::cuda(0);  // of all tensors; each rank has a GPU of its own
};
std::unique_ptr<Communicator> make_nccl_communicator(Communicator& same_ranks, const NcclOptions& options = {});
// `rendezvous`: "host:port" where rank 0 listens for the others.
std::unique_ptr<Communicator> make_nccl_communicator(const std::string& rendezvous, int rank, int size,
                                                     const NcclOptions& options = {});

}  // namespace weft::dist
