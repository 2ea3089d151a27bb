// What is wrong with a GPU, in the same words whether it is real or emulated.
#pragma once

#include <source_location>
#include <string_view>

namespace weft::cuda {

// Error if kernels for this compute capability (10 * major + minor) are not in any build.
void check_architecture(int device, int architecture);

// Throws. is_sticky: the runtime will answer everything else with the same error.
[[noreturn]] void fail_call(std::string_view what, std::string_view name, std::string_view text, bool is_sticky,
                            std::source_location location);

}  // namespace weft::cuda
