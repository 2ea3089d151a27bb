// The page of claims: what papers say about their variants, and what studies of small models make of it.
#pragma once

#include <string>
#include <vector>

#include "trainers/study/grid.h"

namespace weft::study {

struct ClaimsPage {
  std::string text, json;  // Markdown; and the verdicts alone
};
// Of grids that have claims; the study of each stands in a folder of `runs` that has its name. The same folders give the same bytes.
// `command` is said on the page.
ClaimsPage claims_page(const std::vector<Grid>& grids, const std::string& runs, const std::string& command);

}  // namespace weft::study
