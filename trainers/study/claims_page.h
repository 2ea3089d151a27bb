// The page of claims: what papers say about their variants, and what studies of small models make of it.
#pragma once

#include <string>
#include <vector>

#include "trainers/study/grid.h"

namespace weft::study {

struct ClaimsPage {
  std::string text, json;  // Markdown; and the verdicts alone
};
struct ClaimFolders {
  std::string runs;  // the study of a grid stands in the folder of its name
  std::string kept =
      {};  // empty, or where NAME.json keeps the numbers of each study: written of those that are complete in `runs`,
           // read for the others
};
// Of grids that have claims. The same folders give the same bytes. `command` is said on the page.
ClaimsPage claims_page(const std::vector<Grid>& grids, const ClaimFolders& folders, const std::string& command);

}  // namespace weft::study
