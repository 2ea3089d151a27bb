// What is wrong with a GPU, in the same words whether it is real or emulated.
#pragma once

#include <cstddef>
#include <cstdint>
#include <source_location>
#include <string>
#include <string_view>

#include "weft/core/dtype.h"
#include "weft/core/shape.h"

namespace weft::cuda {

// "" if builds have kernels for this compute capability (10 * major + minor), else that they have none.
std::string architecture_problem(int architecture);
void check_architecture(int device, int architecture);  // Error with that text

// What this thread has asked its GPUs for lately, for errors that a device reports later: the kernel with its sizes, and the last
// tensors made before it, the op's results among them. `op` must outlive the program. blocks 0: a library's kernel.
void note_tensor(const Shape& shape, DType dtype);
void note_launch(std::string_view op, int64_t blocks = 0, int64_t threads = 0, size_t shared_bytes = 0);

// Throws. is_sticky: the runtime will answer everything else with the same error; its text names the last launches.
[[noreturn]] void fail_call(std::string_view what, std::string_view name, std::string_view text, bool is_sticky,
                            std::source_location location);

}  // namespace weft::cuda
