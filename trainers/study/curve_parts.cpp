// What the runs of each arm have recorded over their training: losses, and diagnostics of layers and heads.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "trainers/run/value_pictures.h"
#include "trainers/study/report_parts.h"
#include "weft/io/files.h"

namespace weft::study {

namespace {

using Json = nlohmann::ordered_json;
using Records = std::vector<io::MetricsRecord>;
using Points = std::map<int64_t, SpreadPoint>;  // by step

// Of every cell.
std::vector<Records> records_of(const StudyData& data) {
  std::vector<Records> all;
  for (const Cell& cell : data.cells) {
    const std::string file = run_folder(data.folder, cell) + "/metrics.jsonl";
    all.push_back(io::file_exists(file) ? io::apply_rewinds(io::read_metrics(file)) : Records());
  }
  return all;
}

Points points_of(const StudyData& data, const std::vector<Records>& records, size_t arm, const std::string& key) {
  Points points;
  for (size_t i = 0; i < data.cells.size(); ++i)
    if (data.cells[i].combination == arm)
      for (const io::MetricsRecord& record : records[i])
        if (const auto value = record.value(key)) points[record.step].add(*value);
  return points;
}

// How far an arm is from the baseline at every step, seed by seed: what all arms share is not in it.
Points gaps_of(const StudyData& data, const std::vector<Records>& records, size_t arm, const std::string& key) {
  std::map<int64_t, std::map<int64_t, double>> baseline;  // by seed and step
  for (size_t i = 0; i < data.cells.size(); ++i)
    if (data.cells[i].combination == data.arms.baseline)
      for (const io::MetricsRecord& record : records[i])
        if (const auto value = record.value(key)) baseline[data.cells[i].seed][record.step] = *value;
  Points points;
  for (size_t i = 0; i < data.cells.size(); ++i) {
    if (data.cells[i].combination != arm) continue;
    const std::map<int64_t, double>& of_seed = baseline[data.cells[i].seed];
    for (const io::MetricsRecord& record : records[i])
      if (const auto value = record.value(key))
        if (const auto at = of_seed.find(record.step); at != of_seed.end())
          points[record.step].add(*value - at->second);
  }
  return points;
}

Json json_of(const Points& points) {
  Json steps = Json::array(), means = Json::array(), lowest = Json::array(), highest = Json::array(),
       runs = Json::array();
  for (const auto& [step, point] : points) {
    if (point.count == 0) continue;
    steps.push_back(step), means.push_back(point.sum / static_cast<double>(point.count));
    lowest.push_back(point.lowest), highest.push_back(point.highest), runs.push_back(point.count);
  }
  return {{"steps", steps}, {"mean", means}, {"lowest", lowest}, {"highest", highest}, {"runs", runs}};
}

// A plot, its table and its JSON. No plot where runs have one point each: the table says it.
void add_curves(const StudyData& data, const std::string& title, const std::vector<Points>& arms, ReportPart& part,
                Json& json) {
  io::Plot plot{.title = title, .x_label = "step", .y_label = "nats per token"};
  io::ReportTable table{.title = title + ": means over the seeds",
                        .header = {"arm", "steps", "first", "last", "lowest", "at step"},
                        .rows = {}};
  Json curves = Json::array();
  for (size_t a = 0; a < arms.size(); ++a) {
    io::PlotSeries series = series_of(data, a, {arms[a].begin(), arms[a].end()});
    if (series.points.empty()) continue;
    const auto lowest = std::ranges::min_element(series.points, {}, &std::pair<double, double>::second);
    table.rows.push_back({data.arms.all[a].name, str(std::ssize(series.points)),
                          fmt::format("{:.4f}", series.points.front().second),
                          fmt::format("{:.4f}", series.points.back().second), fmt::format("{:.4f}", lowest->second),
                          fmt::format("{:.0f}", lowest->first)});
    Json curve{{"arm", data.arms.all[a].name}};
    curve.update(json_of(arms[a]));
    curves.push_back(std::move(curve));
    plot.series.push_back(std::move(series));
  }
  if (plot.series.empty()) return;
  json.push_back({{"curve", title}, {"arms", std::move(curves)}});
  part.section.tables.push_back(std::move(table));
  const auto is_curve = [](const io::PlotSeries& series) { return series.points.size() > 1; };
  if (std::ranges::any_of(plot.series, is_curve)) part.section.pictures.push_back(std::move(plot));
}

// Diagnostics of an arm, as means over its seeds.
std::vector<io::HeatMap> maps_of(const StudyData& data, const std::vector<Records>& records, size_t arm) {
  std::map<int64_t, std::map<std::string, SpreadPoint>> steps;
  for (size_t i = 0; i < data.cells.size(); ++i)
    if (data.cells[i].combination == arm)
      for (const io::MetricsRecord& record : records[i])
        if (record.kind == "diagnostics")
          for (const auto& [key, value] : record.values) steps[record.step][key].add(value);
  Records means;
  for (const auto& [step, values] : steps) {
    io::MetricsRecord& record = means.emplace_back();
    record.step = step, record.kind = "diagnostics";
    for (const auto& [key, point] : values)
      if (point.count > 0) record.values.emplace_back(key, point.sum / static_cast<double>(point.count));
  }
  return train::head_maps(means);
}

// Over the rows of a map, at the last step that has a number. NaN without one.
double last_mean(const io::HeatMap& map) {
  for (size_t c = map.x.size(); c-- > 0;) {
    SpreadPoint point;
    for (const std::vector<double>& row : map.values) point.add(row[c]);
    if (point.count > 0) return point.sum / static_cast<double>(point.count);
  }
  return std::nan("");
}

Json json_of(const io::HeatMap& map) {
  Json values = Json::array();
  for (const std::vector<double>& row : map.values) {
    Json& out = values.emplace_back(Json::array());
    for (double x : row) out.push_back(std::isfinite(x) ? Json(x) : Json(nullptr));
  }
  return {{"diagnostic", map.title}, {"steps", map.x}, {"rows", map.rows}, {"values", std::move(values)}};
}

}  // namespace

std::vector<ReportPart> curve_parts(const StudyData& data) {
  const std::vector<Records> records = records_of(data);
  const auto of_arms = [&](auto& points, const std::string& key, bool has_baseline) {
    std::vector<Points> arms;
    for (size_t a = 0; a < data.arms.all.size(); ++a)
      arms.push_back(a == data.arms.baseline && !has_baseline ? Points() : points(data, records, a, key));
    return arms;
  };
  ReportPart part{.key = "curves",
                  .section = {.heading = "Curves",
                              .text = "Means over the seeds that have reached a step, lost runs among them; bands from "
                                      "the lowest to the highest seed."}};
  Json json = Json::array();
  add_curves(data, "Validation loss", of_arms(points_of, "val/loss", true), part, json);
  add_curves(data, "Training loss", of_arms(points_of, "train/loss", true), part, json);
  add_curves(data, "Training loss minus that of " + data.arms.all[data.arms.baseline].name,
             of_arms(gaps_of, "train/loss", false), part, json);
  if (json.empty()) return {};
  part.json = json.dump(-1, ' ', false, Json::error_handler_t::replace);
  return {std::move(part)};
}

std::vector<ReportPart> diagnostics_parts(const StudyData& data) {
  const std::vector<Records> records = records_of(data);
  ReportPart part{.key = "diagnostics",
                  .section = {.heading = "Diagnostics",
                              .text = "Means over layers, heads and seeds at the last step that has them."}};
  io::ReportTable table{.title = "", .header = {"diagnostic"}, .rows = {}};
  std::vector<std::pair<std::string, std::vector<std::string>>> rows;  // by title: a column per arm
  Json json = Json::array();
  for (size_t a = 0; a < data.arms.all.size(); ++a) {
    const std::string& name = data.arms.all[a].name;
    table.header.push_back(name);
    io::ReportSection section{.heading = "Diagnostics of " + name,
                              .text = "Layers and heads against steps, means over the seeds."};
    Json maps = Json::array();
    for (io::HeatMap& map : maps_of(data, records, a)) {
      auto row = std::ranges::find(rows, map.title, &std::pair<std::string, std::vector<std::string>>::first);
      if (row == rows.end()) row = rows.insert(row, {map.title, std::vector<std::string>(data.arms.all.size(), "-")});
      maps.push_back(json_of(map));
      if (const double mean = last_mean(map); std::isfinite(mean)) {
        row->second[a] = fmt::format("{:.4f}", mean);
        maps.back()["last_mean"] = mean;
      }
      section.pictures.push_back(std::move(map));
    }
    json.push_back({{"arm", name}, {"maps", std::move(maps)}});
    if (!section.pictures.empty()) part.page.push_back(std::move(section));
  }
  if (rows.empty()) return {};
  for (auto& [title, values] : rows) {
    values.insert(values.begin(), title);
    table.rows.push_back(std::move(values));
  }
  part.section.tables.push_back(std::move(table));
  part.json = json.dump(-1, ' ', false, Json::error_handler_t::replace);
  return {std::move(part)};
}

}  // namespace weft::study
