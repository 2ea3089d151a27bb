// Counts what num_device_waits() tells: every place where the CPU waits for a GPU calls it.
#pragma once

#include <cstdint>

namespace weft {

void count_device_wait(int64_t count = 1);

}  // namespace weft
