// The allocator of this thread's dry run; only in one.
#pragma once

#include <functional>

#include "weft/core/allocator.h"

namespace weft {

Allocator& dry_allocator(Device device);

// What f holds at its peak of the CPU's memory, beside the tensors that are there. f's tensors do not outlive it, and the books of the dry
// run are as if f had not run.
int64_t dry_peak_bytes(const std::function<void()>& f);

}  // namespace weft
