// The allocator of this thread's dry run; only in one.
#pragma once

#include <functional>

#include "weft/core/allocator.h"

namespace weft {

Allocator& dry_allocator(Device device);

// What f holds at its peak beside the tensors that are there: of the CPU's memory, and of tensors that do not outlive f.
int64_t dry_peak_bytes(const std::function<void()>& f);

}  // namespace weft
