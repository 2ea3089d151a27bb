// What a study says: every arm with its mean, and its difference from the baseline paired by seed. The same results give the same bytes, but
// for times and memory, which stand at the end of the text and under the key "speed".
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "trainers/study/cells.h"
#include "trainers/study/tune.h"
#include "weft/io/report.h"

namespace weft::study {

// All that a report is made of. `results` in the order of `cells`; a missing one has not been run.
struct StudyData {
  const std::string& folder;
  const Grid& grid;
  const Arms& arms;
  const std::vector<Cell>& cells;
  const std::vector<std::optional<CellResult>>& results;
  const Tuning* tuning = nullptr;
};

struct StudyReport {
  std::string text = {}, json = {};
  std::vector<io::ReportTable> tables = {};      // of the text: what arms are, then one per metric
  std::vector<io::Picture> pictures = {};        // differences of the arms, one per metric; of the page alone
  std::vector<io::ReportSection> sections = {};  // curves, scores, settings, speed: in the text without their pictures
  std::vector<io::ReportSection> page_sections = {};  // behind them, of the page alone
  std::string summary = {}, luck = {};                // of the text: runs that are complete, and what arms win by luck
  std::string conclusion = {};                        // of the text: what the runs tell and what they cannot
  std::string taken_over = {};                        // of the text: results with other paths or defaults
  int64_t num_lost = 0;                               // runs that diverged or failed
};
StudyReport report_of(const StudyData& data);

// ConfigError that names a metric of the grid which no complete run has; the report has dashes in its place.
void require_known_metrics(const StudyData& data);

// report.html in the study's folder, with the loss curves of every arm. Returns warnings, such as that there is no gnuplot.
std::vector<std::string> write_study_page(const StudyData& data, const StudyReport& report);

}  // namespace weft::study
