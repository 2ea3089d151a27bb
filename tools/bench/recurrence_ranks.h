// Rows of `weft bench recurrence` over ranks.
#pragma once

#include <vector>

#include "tools/bench/bench.h"

namespace weft::bench {

void add_recurrence_ranks(const BenchOptions& options, std::vector<Row>& rows);

}  // namespace weft::bench
