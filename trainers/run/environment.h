// What environment.txtpb says.
#pragma once

#include <cstdint>
#include <string>

namespace weft::train {

std::string environment_text(int64_t seed);

// Of the sources that this library was built from; "-dirty" behind it if they were changed, empty outside a checkout.
std::string build_commit();

}  // namespace weft::train
