#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "distributed/comm/nccl/api.h"
#include "weft/comm/nccl.h"

namespace weft::dist {

// Every rank gives a text and has those of all, in the order of ranks.
using GatherTexts = std::function<std::vector<std::string>(const std::string& mine)>;

std::unique_ptr<Communicator> join_by_nccl(std::unique_ptr<NcclApi> api, int rank, int size, const GatherTexts& gather,
                                           const NcclOptions& options);

}  // namespace weft::dist
