#include "src/core/cuda/problems.h"

#include "weft/core/error.h"

namespace weft::cuda {

void check_architecture(int device, int architecture) {
  constexpr int kOldest = 80;
  WEFT_CHECK(
      architecture >= kOldest,
      str("cuda:", device, ": compute capability ", architecture / 10, ".", architecture % 10, " is not supported"),
      "use a GPU of compute capability 8.0 or newer, or train.device=cpu");
}

void fail_call(std::string_view what, std::string_view name, std::string_view text, bool is_sticky,
               std::source_location location) {
  fail(str(what, ": CUDA error ", name, ": ", text),
       is_sticky ? "run again with WEFT_CUDA_SYNC=1 to see the op at fault; this process cannot use the GPU any more"
                 : "see the reason above",
       location);
}

}  // namespace weft::cuda
