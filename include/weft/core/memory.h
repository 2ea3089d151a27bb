// How much memory is left for this process. With it, a program can refuse work that will not fit, before the system kills the process.
#pragma once

#include <cstdint>
#include <string>

#include "weft/core/device.h"

namespace weft {

// Bytes that tensors on the device may still take. On a GPU: what the driver reports as free. On the CPU, the smallest of three:
// - what the system reports as available (MemAvailable);
// - what the control groups of this process leave below their limits, where page cache that can be dropped does not count as used;
// - what is left of the address space limit.
// Memory that an Allocator keeps for reuse counts as taken.
int64_t available_bytes(Device device);

// The same without what is used: the memory of the machine or GPU, or the lowest limit of a control group.
int64_t limit_bytes(Device device);

}  // namespace weft
