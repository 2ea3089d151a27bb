// What environment.txtpb says.
#pragma once

#include <cstdint>
#include <string>

namespace weft::train {

std::string environment_text(int64_t seed);

}  // namespace weft::train
