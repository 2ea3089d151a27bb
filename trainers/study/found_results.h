// Whether the finished runs of a study's folder are those of its cells, whatever checksums their names have.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "trainers/study/grid.h"

namespace weft::study {

// Complete and diverged runs in the folder that are of none of the cells.
int64_t num_finished_of_others(const std::string& study_folder, const std::vector<Cell>& cells);
// In what two configs differ but for names, folders of files and fields that one of them leaves to a preset.
std::vector<config::Difference> differences_but_for_folders(config::Experiment a, config::Experiment b);

}  // namespace weft::study
