#include "src/core/cuda/problems.h"

#include <algorithm>
#include <array>

#include "weft/core/error.h"

namespace weft::cuda {

namespace {

struct Made {
  Shape shape;
  DType dtype = kF32;
};
using LastMade = std::array<Made, 3>;  // oldest first

struct Launch {
  std::string_view op;
  int64_t blocks = 0, threads = 0;
  size_t shared_bytes = 0;
  LastMade made;
};

// The last launches of a thread, in turn.
struct Trail {
  static constexpr int64_t kKept = 6;
  std::array<Launch, kKept> launches;
  int64_t count = 0;
  LastMade made;
};
thread_local Trail trail;

std::string text_of_trail() {
  std::string text;
  for (int64_t i = trail.count - 1; i >= std::max<int64_t>(0, trail.count - Trail::kKept); --i) {
    const Launch& l = trail.launches[static_cast<size_t>(i % Trail::kKept)];
    text += str("\n    ", l.op, ", last tensors");
    for (const Made& made : l.made) text += str(" ", made.shape, " ", made.dtype);
    if (l.blocks > 0)
      text += str(": ", l.blocks, " blocks of ", l.threads, " threads, ", l.shared_bytes, " bytes of shared memory");
  }
  return text;
}

}  // namespace

void note_tensor(const Shape& shape, DType dtype) {
  std::rotate(trail.made.begin(), trail.made.begin() + 1, trail.made.end());
  trail.made.back() = {shape, dtype};
}

void note_launch(std::string_view op, int64_t blocks, int64_t threads, size_t shared_bytes) {
  trail.launches[static_cast<size_t>(trail.count++ % Trail::kKept)] = {op, blocks, threads, shared_bytes, trail.made};
}

std::string architecture_problem(int architecture) {
  constexpr int kOldest = 80;
  if (architecture >= kOldest) return "";
  return str("compute capability ", architecture / 10, ".", architecture % 10, " is not supported");
}

void check_architecture(int device, int architecture) {
  std::string problem = architecture_problem(architecture);
  WEFT_CHECK(problem.empty(), str("cuda:", device, ": ", problem),
             "use a GPU of compute capability 8.0 or newer, or train.device=cpu");
}

void fail_call(std::string_view what, std::string_view name, std::string_view text, bool is_sticky,
               std::source_location location) {
  fail(str(what, ": CUDA error ", name, ": ", text,
           is_sticky && trail.count > 0 ? "\n  this thread's last kernels, newest first, one of which may be at fault:"
                                        : "",
           is_sticky ? text_of_trail() : std::string()),
       is_sticky ? "run again with WEFT_CUDA_SYNC=1 to see the op at fault; this process cannot use the GPU any more"
                 : "see the reason above",
       location);
}

}  // namespace weft::cuda
