// What the check `ranks` tried, counted: a table in Markdown, and lines for a summary.
#pragma once

#include <span>
#include <string>

#include "trainers/conformance/conformance.h"

namespace weft::conformance {

// How many spreads of a variant equal one rank in each layout, scheme and number of ranks, and what is refused why. Variants with the same
// numbers share a line.
std::string ranks_table(std::span<const Result> results);
// Lines with the counts over all variants, and a line per refusal; "" without a result of `ranks`.
std::string ranks_summary(std::span<const Result> results);

}  // namespace weft::conformance
