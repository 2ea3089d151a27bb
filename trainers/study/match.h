// Arms with equally many parameters: the width of the feed-forward network makes up for what an arm adds or saves.
#pragma once

#include "trainers/study/grid.h"

namespace weft::study {

// Counts parameters (without embeddings) and operations of every arm and, if the grid asks for it, changes widths so that all have as many
// parameters as the baseline. ConfigError if an arm cannot be matched.
void count_and_match(const Grid& grid, Arms& arms, const cli::Extensions& own);

}  // namespace weft::study
