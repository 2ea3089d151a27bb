// In a file of its own, so that a program that only asks does not load MPI.
#include "weft/comm/communicator.h"

namespace weft::dist {

bool has_mpi() { return true; }

}  // namespace weft::dist
