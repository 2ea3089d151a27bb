// How many ranks share a place, such as a host or one of its GPUs.
#pragma once

#include <string>

#include "weft/comm/communicator.h"

namespace weft::train {

std::string host_name();
// Those that name the same one; every rank calls it. Launchers do not all say how many ranks of a host there are.
int count_ranks_at(dist::Communicator& world, const std::string& place);

}  // namespace weft::train
