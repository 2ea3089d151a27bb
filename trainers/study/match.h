// Arms with equally many parameters or operations: the width of the feed-forward network, or the number of training tokens, makes up for what an
// arm adds or saves.
#pragma once

#include "trainers/study/grid.h"

namespace weft::study {

// Counts parameters (without embeddings) and operations of every arm and, if the grid asks for it, changes widths or tokens so that all have as
// many as the baseline. ConfigError if an arm cannot be matched.
void count_and_match(const Grid& grid, Arms& arms, const cli::Extensions& own);

}  // namespace weft::study
