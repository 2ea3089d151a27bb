#include "trainers/study/report_parts.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "trainers/study/match.h"
#include "weft/core/error.h"
#include "weft/trainers/statistics.h"

namespace weft::study {

namespace {

using Json = nlohmann::ordered_json;

Json number(double x) { return std::isfinite(x) ? Json(x) : Json(nullptr); }

bool has_metric(const StudyData& data, const std::string& metric) {
  return std::ranges::any_of(data.results, [&](const auto& r) { return r && metric_of(*r, metric); });
}

std::string mean_text(const StudyData& data, size_t arm, const std::string& metric) {
  const Mean mean = mean_of(values_of(data, arm, metric));
  return mean.count > 0 ? fmt::format("{:.4f}", mean.mean) : "-";
}

}  // namespace

void SpreadPoint::add(double x) {
  if (!std::isfinite(x)) return;
  lowest = count > 0 ? std::min(lowest, x) : x, highest = count > 0 ? std::max(highest, x) : x;
  sum += x, ++count;
}

io::PlotSeries series_of(const StudyData& data, size_t arm, const std::vector<std::pair<double, SpreadPoint>>& points) {
  io::PlotSeries series{.name = data.arms.all[arm].name, .colour = static_cast<int>(arm) + 1};
  for (const auto& [x, point] : points) {
    if (point.count == 0) continue;
    series.points.emplace_back(x, point.sum / static_cast<double>(point.count));
    series.band.emplace_back(point.lowest, point.highest);
  }
  return series;
}

std::vector<double> values_of(const StudyData& data, size_t arm, const std::string& metric) {
  std::vector<double> values(data.grid.seeds.size(), std::numeric_limits<double>::quiet_NaN());
  for (size_t i = 0; i < data.cells.size(); ++i) {
    const std::optional<CellResult>& result = data.results[i];
    if (data.cells[i].combination != arm || !result || result->state != CellResult::State::complete) continue;
    const auto seed = std::ranges::find(data.grid.seeds, data.cells[i].seed) - data.grid.seeds.begin();
    if (const auto value = metric_of(*result, metric)) values[static_cast<size_t>(seed)] = *value;
  }
  return values;
}

std::string text_of(const io::ReportTable& table) {
  std::vector<std::vector<std::string>> rows{table.header};
  rows.insert(rows.end(), table.rows.begin(), table.rows.end());
  std::vector<size_t> widths(table.header.size(), 0);
  for (const auto& row : rows)
    for (size_t c = 0; c < row.size(); ++c) widths[c] = std::max(widths[c], row[c].size());
  std::string text = table.title + "\n";
  for (const auto& row : rows) {
    std::string line = fmt::format("{:<{}}", row[0], widths[0]);
    for (size_t c = 1; c < row.size(); ++c) line += fmt::format("  {:>{}}", row[c], widths[c]);
    text += line.substr(0, line.find_last_not_of(' ') + 1) + "\n";
  }
  return text;
}

std::vector<std::string> metrics_of_arms(const StudyData& data) {
  std::vector<std::string> wanted{"val/bpb", "first_token_mass"}, metrics;
  for (const std::string& task : data.grid.evals.tasks) wanted.push_back(str("task/", task, "/accuracy"));
  for (const std::string& metric : wanted)
    if (metric != data.grid.metrics[0] && has_metric(data, metric)) metrics.push_back(metric);
  return metrics;
}

io::ReportTable arms_table(const StudyData& data) {
  const Grid& grid = data.grid;
  const std::string& first = grid.metrics[0];
  const bool has_idle = std::ranges::any_of(data.arms.all, [](const Combination& arm) { return arm.idle_params > 0; });
  io::ReportTable table{.title = "Arms: parameters without embeddings, operations of a token without the output head" +
                                 (grid.match ? "; " + match_text(grid, data.arms) : ""),
                        .header = {"arm", "without embeddings"},
                        .rows = {}};
  if (has_idle) table.header.push_back("active of them");
  if (grid.match) table.header.push_back("off by %");
  table.header.insert(table.header.end(), {"MFLOP/token", "tokens"});
  if (data.tuning) table.header.push_back(grid.tune->path);
  table.header.insert(table.header.end(), {first, "difference", "t interval"});
  const std::vector<std::string> more = metrics_of_arms(data);
  for (const std::string& metric : more) table.header.push_back(metric == "first_token_mass" ? "first token" : metric);
  const std::vector<double> baseline = values_of(data, data.arms.baseline, first);
  for (size_t a = 0; a < data.arms.all.size(); ++a) {
    const Combination& arm = data.arms.all[a];
    std::vector<std::string> row{arm.name, str(arm.params)};
    if (has_idle) row.push_back(str(arm.params - arm.idle_params));
    if (grid.match) row.push_back(arm.off_by ? fmt::format("{:+.3f}", 100 * *arm.off_by) : "-");
    row.push_back(fmt::format("{:.3f}", arm.flops_per_token / 1e6));
    row.push_back(str(arm.experiment.train().tokens()));
    if (data.tuning) row.push_back(arm.tuned.empty() ? "-" : arm.tuned);
    row.push_back(mean_text(data, a, first));
    const Difference d = paired_difference(values_of(data, a, first), baseline, {.confidence = grid.confidence});
    const bool is_baseline = a == data.arms.baseline;
    row.push_back(is_baseline || d.count == 0 ? "-" : fmt::format("{:+.4f}", d.mean));
    row.push_back(
        is_baseline || !d.t_interval ? "-" : fmt::format("[{:+.4f}, {:+.4f}]", d.t_interval->low, d.t_interval->high));
    for (const std::string& metric : more) row.push_back(mean_text(data, a, metric));
    table.rows.push_back(std::move(row));
  }
  return table;
}

std::vector<ReportPart> tuning_parts(const StudyData& data) {
  if (!data.tuning) return {};
  const Tuning& tuning = *data.tuning;
  io::ReportTable table{.title = str("mean ", data.grid.tune->metric, " of each value; * the best of an arm"),
                        .header = {"arm"},
                        .rows = {}};
  for (const std::string& value : tuning.values) table.header.push_back(value);
  table.header.push_back("best");
  io::Plot plot{
      .title = "Tuning of " + data.grid.tune->path, .x_label = "log10 of the value", .y_label = data.grid.tune->metric};
  Json arms = Json::array();
  std::string edges, lost;
  for (size_t a = 0; a < data.arms.all.size(); ++a) {
    const std::string& name = data.arms.all[a].name;
    std::vector<std::string> row{name};
    Json tries = Json::array();
    io::PlotSeries series{.name = name, .colour = static_cast<int>(a) + 1};
    for (size_t v = 0; v < tuning.values.size(); ++v) {
      const Tuning::Try& one = tuning.tries[a][v];
      row.push_back(std::isfinite(one.mean) ? fmt::format("{:.4f}{}", one.mean, tuning.best[a] == v ? "*" : "")
                                            : str(one.lost, " lost"));
      tries.push_back(
          {{"value", tuning.values[v]}, {"mean", number(one.mean)}, {"runs", one.count}, {"lost", one.lost}});
      if (!std::isfinite(one.mean)) continue;
      series.points.emplace_back(std::log10(std::stod(tuning.values[v])), one.mean);
      series.band.emplace_back(one.lowest, one.highest);
    }
    const std::string best = tuning.best[a] ? tuning.values[*tuning.best[a]] : "-";
    row.push_back(best);
    table.rows.push_back(std::move(row));
    plot.series.push_back(std::move(series));
    arms.push_back({{"arm", name},
                    {"best", tuning.best[a] ? Json(best) : Json(nullptr)},
                    {"is_edge", tuning.is_edge(a)},
                    {"tries", tries}});
    if (tuning.is_edge(a)) edges += (edges.empty() ? "" : ", ") + name;
    if (!tuning.best[a]) lost += (lost.empty() ? "" : ", ") + name;
  }
  const std::string text = fmt::format(
      "{} of every arm was tried with {} values and {} seeds, on validation data and seeds that do not count "
      "below.{}{}",
      data.grid.tune->path, tuning.values.size(), data.grid.tune->seeds.size(),
      edges.empty() ? "" : " The best value still lies at the edge for " + edges + ".",
      lost.empty() ? "" : " Every value lost a run of " + lost + ": its runs were not made, and count as lost.");
  return {{.key = "tuning",
           .section = {.heading = "Tuning", .text = text, .pictures = {std::move(plot)}, .tables = {std::move(table)}},
           .json = Json{
               {"path", data.grid.tune->path},
               {"metric", data.grid.tune->metric},
               {"seeds", data.grid.tune->seeds},
               {"arms",
                arms}}.dump(-1, ' ', false, Json::error_handler_t::replace)}};
}

ReportPart speed_part(const StudyData& data) {
  io::ReportTable table{.title = "speed and memory: means over the runs, as they were run",
                        .header = {"arm", "tokens/s", "peak MiB of tensors"},
                        .rows = {}};
  Json arms = Json::array();
  for (size_t a = 0; a < data.arms.all.size(); ++a) {
    const Mean speed = mean_of(values_of(data, a, "speed/tokens_per_second")),
               memory = mean_of(values_of(data, a, "memory/peak_gib"));
    table.rows.push_back({data.arms.all[a].name, speed.count > 0 ? fmt::format("{:.0f}", speed.mean) : "-",
                          memory.count > 0 ? fmt::format("{:.1f}", 1024 * memory.mean) : "-"});
    arms.push_back({{"arm", data.arms.all[a].name},
                    {"tokens_per_second", speed.count > 0 ? Json(speed.mean) : Json(nullptr)},
                    {"peak_bytes", memory.count > 0 ? Json(memory.mean * 1073741824.0) : Json(nullptr)}});
  }
  return {.key = "speed",
          .section = {.heading = "Speed and memory",
                      .text = "Runs beside each other share the machine: compare tokens per second of one study only.",
                      .tables = {std::move(table)}},
          .json = arms.dump(-1, ' ', false, Json::error_handler_t::replace)};
}

}  // namespace weft::study
