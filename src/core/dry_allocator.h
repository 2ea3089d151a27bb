// The allocator of this thread's dry run; only in one.
#pragma once

#include "weft/core/allocator.h"

namespace weft {

Allocator& dry_allocator(Device device);

}  // namespace weft
