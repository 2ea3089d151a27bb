// A profile as a file for chrome://tracing and ui.perfetto.dev: the CPU's spans on one line, the GPU's on another.
#pragma once

#include <string>
#include <vector>

#include "weft/core/profile.h"

namespace weft::train {

void write_trace(const std::vector<ProfileSpan>& spans, const std::string& path);  // makes the folder

}  // namespace weft::train
