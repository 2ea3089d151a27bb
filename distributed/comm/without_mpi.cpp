// What weft/comm/communicator.h says of MPI, in a build without it.
#include "weft/comm/communicator.h"
#include "weft/core/error.h"

namespace weft::dist {

bool has_mpi() { return false; }

std::unique_ptr<Communicator> make_mpi_communicator(MpiOptions) {
  fail("make_mpi_communicator: this build has no MPI",
       "install libopenmpi-dev and openmpi-bin (tools/setup does) and configure with -DWEFT_MPI=ON");
}

}  // namespace weft::dist
