// What memory is left for this process, so that a program can refuse what will not fit before the system ends it.
#pragma once

#include <cstdint>
#include <string>

#include "weft/core/device.h"

namespace weft {

// Bytes that tensors on the device may still take. CPU: the least of what the system calls available (MemAvailable), what the control groups of
// this process leave below their limits (page cache that can be dropped does not count as used), and the limit of the address space. GPU: what the driver calls free.
// Memory that an Allocator keeps for reuse counts as taken.
int64_t available_bytes(Device device);

// Total in the same sense: the machine's or GPU's memory, or the lowest limit of a control group.
int64_t limit_bytes(Device device);

}  // namespace weft
