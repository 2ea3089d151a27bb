// Scratch memory of the attention core's threads.
#include <cstdlib>
#include <memory>

#include "weft/core/error.h"
#include "weft/ops/attention/problem.h"

namespace weft::ops::core {

namespace {
struct Free {
  void operator()(std::byte* p) const { std::free(p); }
};
}  // namespace

std::byte* scratch(size_t bytes) {
  thread_local std::unique_ptr<std::byte, Free> memory;
  thread_local size_t capacity = 0;
  if (bytes > capacity) {
    size_t asked = (bytes + 4095) / 4096 * 4096;
    memory.reset();
    capacity = 0;
    memory.reset(static_cast<std::byte*>(std::aligned_alloc(4096, asked)));
    WEFT_CHECK(memory, str("attention: no memory for ", asked, " bytes of scratch per thread"),
               "use narrower heads or fewer threads");
    capacity = asked;
  }
  return memory.get();
}

}  // namespace weft::ops::core
