// What environment.txtpb says.
#pragma once

#include <cstdint>
#include <string>

namespace weft::train {

std::string environment_text(int64_t seed);

// Of the checkout where the process runs, "-dirty" behind it if it was changed; empty outside one. The first call asks git, and so starts
// programs, which a process must not do once MPI runs in it.
const std::string& working_commit();

// Of the sources that this library was built from; "-dirty" behind it if they were changed, empty outside a checkout.
std::string build_commit();

}  // namespace weft::train
