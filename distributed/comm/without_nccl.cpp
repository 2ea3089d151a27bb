// What weft/comm/nccl.h says of NCCL, in a build without it.
#include "weft/comm/nccl.h"
#include "weft/core/error.h"

namespace weft::dist {

namespace {
[[noreturn]] void refuse() {
  fail("make_nccl_communicator: this build has no NCCL",
       "build with the preset cuda where nccl.h is installed, or use ranks of mpirun or threads");
}
}  // namespace

bool has_nccl() { return false; }
std::unique_ptr<Communicator> make_nccl_communicator(Communicator&, const NcclOptions&) { refuse(); }
std::unique_ptr<Communicator> make_nccl_communicator(const std::string&, int, int, const NcclOptions&) { refuse(); }

}  // namespace weft::dist
