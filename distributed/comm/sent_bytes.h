// What a rank gives to others, by one rule for all communicators.
#pragma once

#include "weft/comm/communicator.h"

namespace weft::dist {

// A collective as a ring of `ranks` does it: what the rank that sends most sends.
int64_t sent_bytes(const Operation& operation, int ranks);
// Messages to other ranks than `me`.
int64_t sent_bytes(std::span<const Send> sends, int me);

}  // namespace weft::dist
