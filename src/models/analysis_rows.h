// What analyses of rows share of which each rank of a context has some tokens.
#pragma once

#include <vector>

#include "weft/models/analysis.h"
#include "weft/nn/context_group.h"

namespace weft {

// Number by number over the ranks, in their order: the same on all of them, which each call it. comm null: one rank.
std::vector<double> sum_of_ranks(dist::Communicator* comm, std::vector<double> here);
std::vector<double> sum_of_ranks(const AnalysisRows& rows, std::vector<double> here);  // of those that share the rows

}  // namespace weft
