// Ranks that use a finished run: evaluate or analyse it.
#pragma once

#include <string>
#include <vector>

#include "trainers/run/context_choice.h"

namespace weft::train {

// As many context ranks as the run's config has, and data ranks to fill the rest. ConfigError, which begins with `started_by`, where they do not
// divide.
ParallelOptions run_mesh(const config::Loaded& config, int ranks, const std::string& started_by);

// How they share rows. A run's config names what was chosen for its own ranks: it is chosen again, but for what `overrides` name. Every rank
// calls it.
ContextChoice run_choice(config::Loaded config, const std::vector<std::string>& overrides, dist::Communicator& world);

}  // namespace weft::train
