// What a study says: every arm with its mean, and its difference from the baseline paired by seed. The same results give the same bytes.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "trainers/study/cells.h"
#include "weft/io/report.h"

namespace weft::study {

struct StudyReport {
  std::string text = {}, json = {};
  std::vector<io::ReportTable> tables = {};  // of the text, one per metric
  std::string summary = {}, luck = {};       // of the text: runs that are complete, and what arms win by luck
  int64_t num_lost = 0;                      // runs that diverged or failed
};
// `results` in the order of `cells`; a missing one has not been run.
StudyReport report_of(const Grid& grid, const Arms& arms, const std::vector<Cell>& cells,
                      const std::vector<std::optional<CellResult>>& results);

// report.html in the study's folder, with the loss curves of every arm. Returns warnings, such as that there is no gnuplot.
std::vector<std::string> write_study_page(const std::string& folder, const Grid& grid, const Arms& arms,
                                          const std::vector<Cell>& cells,
                                          const std::vector<std::optional<CellResult>>& results,
                                          const StudyReport& report);

}  // namespace weft::study
