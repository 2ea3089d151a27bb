// Parts of a study's report beside the comparison of its metrics. Each is a section with tables and pictures, and its numbers as JSON.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "trainers/study/metric.h"
#include "trainers/study/origin.h"
#include "trainers/study/study_report.h"

namespace weft::study {

struct ReportPart {
  std::string key = {};  // of `json` in report.json
  io::ReportSection section = {};
  std::string json = {};
  std::vector<io::ReportSection> page = {};  // further ones, of the page alone
};

// What the arms are: parameters, operations, loss, difference with its interval, bits per byte, recall, weight on the first token; columns of
// what the runs do not have are left out.
io::ReportTable arms_table(const StudyData& data);
// Those of its metrics that stand behind the first one.
std::vector<std::string> metrics_of_arms(const StudyData& data);

// Those that there is something for.
std::vector<ReportPart> score_parts(const StudyData& data);  // recall, recall by difficulty, lengths, positions
std::vector<ReportPart> tuning_parts(const StudyData& data);
ReportPart speed_part(const StudyData& data);
std::vector<ReportPart> curve_parts(const StudyData& data);        // losses against steps
std::vector<ReportPart> diagnostics_parts(const StudyData& data);  // on the page every layer and head against steps
std::vector<ReportPart> setting_parts(const StudyData& data);      // what the arms differ in; hardware and versions

// Where complete runs were made.
struct OriginOfRuns {
  Origin origin;
  std::vector<int64_t> runs;  // of each arm
};
std::vector<OriginOfRuns> origins_of(const StudyData& data);

// Columns as wide as their widest entry; the first is aligned to the left.
std::string text_of(const io::ReportTable& table);

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
