// Parts of a study's report beside the comparison of its metrics. Each is a section with tables and pictures, and the same as JSON.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "trainers/study/study_report.h"

namespace weft::study {

struct ReportPart {
  std::string key = {};  // of `json` in report.json
  io::ReportSection section = {};
  std::string json = {};
};

// What the arms are: parameters, operations, loss, difference with its interval, bits per byte, recall, weight on the first token; columns of
// what the runs do not have are left out.
io::ReportTable arms_table(const StudyData& data);

// Those that there is something for.
std::vector<ReportPart> score_parts(const StudyData& data);  // recall, recall by difficulty, lengths, positions
std::vector<ReportPart> tuning_parts(const StudyData& data);
ReportPart speed_part(const StudyData& data);
// Diagnostics of every arm, as means over its seeds: layers and heads against steps. For the page alone.
std::vector<io::ReportSection> diagnostics_sections(const StudyData& data);

// Columns as wide as their widest entry; the first is aligned to the left.
std::string text_of(const io::ReportTable& table);

// A metric of a run; of a pattern with *, such as "*.sink_rate/*", the mean of all metrics that match it.
std::optional<double> metric_of(const CellResult& result, const std::string& metric);
// The results of an arm that have this metric, by seed in the grid's order; NaN where a run has none.
std::vector<double> values_of(const StudyData& data, size_t arm, const std::string& metric);

// The mean curve of an arm, with a band from the lowest to the highest seed. An arm has the same colour in all plots.
struct SpreadPoint {
  double sum = 0, lowest = 0, highest = 0;
  int64_t count = 0;
  void add(double x);
};
io::PlotSeries series_of(const StudyData& data, size_t arm, const std::vector<std::pair<double, SpreadPoint>>& points);

}  // namespace weft::study
