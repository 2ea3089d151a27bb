// Arms with equally many parameters or operations: the width of the feed-forward network, or the number of training tokens, makes up for what an
// arm adds or saves.
#pragma once

#include <string>

#include "trainers/study/grid.h"

namespace weft::study {

// Counts parameters (without embeddings) and operations of every arm and, if the grid asks for it, changes widths or tokens so that all have as
// many as the baseline. ConfigError if an arm cannot be matched.
void count_and_match(const Grid& grid, Arms& arms, const cli::Extensions& own);
// "matched in parameters within 1 %, by widths in multiples of 8: arms are off by up to 0.43 %". "" if the grid matches nothing.
std::string match_text(const Grid& grid, const Arms& arms);

}  // namespace weft::study
