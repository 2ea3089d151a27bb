// The folder of a study. It holds one grid and the config that its runs start from, so that its report can be made from the folder alone.
#pragma once

#include <string>

#include "trainers/study/grid.h"

namespace weft::study {

// One process at a time works on a study; the lock ends with the process. ConfigError if another one does.
class StudyLock {
 public:
  explicit StudyLock(const std::string& folder);
  ~StudyLock();
  StudyLock(const StudyLock&) = delete;
  StudyLock& operator=(const StudyLock&) = delete;

 private:
  int descriptor_;
};

// Whether the folder holds the study of this grid, to the letter.
bool holds_grid(const std::string& folder, const Grid& grid);
// Writes grid.txtpb and base.txtpb. A folder holds one study, since the report is of one grid: ConfigError if another one is there, or finished
// runs of another base config, which are none of `cells`. Tries of a tuning are none.
void claim_folder(const std::string& folder, const Grid& grid, const std::vector<Cell>& cells);
// The grid that a folder holds, whatever became of the files that it was read from.
Grid stored_grid(const std::string& folder);

}  // namespace weft::study
