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

// While it exists, tensors that this thread makes on the device are an Error once those of its rank would be more than `bytes` together. Ranks
// that are threads have a limit each; where a rank is a process, it is the process's. Tensors that exist before count. Inside another, the outer
// one waits.
class MemoryLimit {
 public:
  MemoryLimit(Device device, int64_t bytes);
  ~MemoryLimit();
  MemoryLimit(const MemoryLimit&) = delete;
  MemoryLimit& operator=(const MemoryLimit&) = delete;

 private:
  bool is_of_gpu_;
  int64_t outer_bytes_;
};

}  // namespace weft
