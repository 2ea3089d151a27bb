#include "trainers/study/study_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "trainers/config/config_error.h"
#include "weft/trainers/statistics.h"

namespace weft::study {

namespace {

using Json = nlohmann::ordered_json;

// Results of one metric: for each arm one number per seed, NaN where a run has none.
struct Results {
  std::vector<std::vector<double>> of_arm;
  std::vector<Mean> means;
  std::vector<Difference> differences;  // of every arm but the baseline, in their order
};

Results results_of(const Grid& grid, const Arms& arms, const std::vector<Cell>& cells,
                   const std::vector<std::optional<CellResult>>& results, const std::string& metric) {
  Results all;
  all.of_arm.assign(arms.all.size(), std::vector<double>(grid.seeds.size(), std::numeric_limits<double>::quiet_NaN()));
  bool is_known = false, is_any_complete = false;
  std::set<std::string> keys;
  for (size_t i = 0; i < cells.size(); ++i) {
    if (!results[i] || results[i]->state != CellResult::State::complete) continue;
    is_any_complete = true;
    const auto found = results[i]->metrics.find(metric);
    for (const auto& [key, value] : results[i]->metrics) keys.insert(key);
    if (found == results[i]->metrics.end()) continue;
    is_known = true;
    const auto seed = std::ranges::find(grid.seeds, cells[i].seed) - grid.seeds.begin();
    all.of_arm[cells[i].combination][static_cast<size_t>(seed)] = found->second;
  }
  if (is_any_complete && !is_known) {
    const std::vector<std::string> names(keys.begin(), keys.end());
    config::check_choice(grid.file + ": compare: metric:", metric, names, "metric of the runs");
  }
  const StatisticsOptions options{.confidence = grid.confidence};
  std::vector<std::vector<double>> others;
  for (size_t a = 0; a < arms.all.size(); ++a) {
    all.means.push_back(mean_of(all.of_arm[a], options));
    if (a != arms.baseline) others.push_back(all.of_arm[a]);
  }
  all.differences = compare(all.of_arm[arms.baseline], others, options);
  return all;
}

std::string interval_text(const std::optional<Interval>& interval) {
  return interval ? fmt::format("[{:+.4f}, {:+.4f}]", interval->low, interval->high) : "-";
}

// How many seeds would find the effect that the grid asks for, by the deviation that was seen.
std::string seeds_text(const Grid& grid, const Difference* d) {
  if (!d || d->count < kFewestForAnInterval) return "-";
  const auto needed = seeds_needed(d->deviation, grid.effect, {.confidence = grid.confidence});
  return needed ? str(*needed) : "over 10 million";
}

// Columns as wide as their widest entry; the first is aligned to the left.
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

io::ReportTable metric_table(const Grid& grid, const Arms& arms, const std::string& metric, const Results& r) {
  io::ReportTable table{.title = fmt::format("{}: arms minus {}, paired by seed", metric, arms.all[arms.baseline].name),
                        .header = {"arm", "parameters", "ffn", metric, "deviation", "difference", "t interval",
                                   "bootstrap", "p", "Holm p", "resolves"}};
  if (grid.effect > 0) table.header.push_back(fmt::format("seeds for {:g}", grid.effect));
  table.header.push_back("runs");
  size_t next = 0;
  for (size_t a = 0; a < arms.all.size(); ++a) {
    const Combination& arm = arms.all[a];
    const Mean& mean = r.means[a];
    std::vector<std::string> row{arm.name, str(arm.params), arm.matched_ffn ? str(arm.matched_ffn) : "-",
                                 mean.count ? fmt::format("{:.4f}", mean.mean) : "-",
                                 mean.count > 1 ? fmt::format("{:.4f}", mean.deviation) : "-"};
    if (a == arms.baseline) {
      for (int c = 0; c < 6; ++c) row.push_back("-");
    } else {
      const Difference& d = r.differences[next++];
      row.push_back(d.count ? fmt::format("{:+.4f}", d.mean) : "-");
      row.push_back(interval_text(d.t_interval));
      row.push_back(interval_text(d.bootstrap_interval));
      row.push_back(d.p ? fmt::format("{:.4f}", *d.p) : "-");
      row.push_back(d.adjusted_p ? fmt::format("{:.4f}", *d.adjusted_p) : "-");
      row.push_back(d.resolves ? fmt::format("{:.4f}", *d.resolves) : "-");
    }
    if (grid.effect > 0) row.push_back(seeds_text(grid, a == arms.baseline ? nullptr : &r.differences[next - 1]));
    row.push_back(str(mean.count, " of ", mean.count + mean.lost));
    table.rows.push_back(std::move(row));
  }
  return table;
}

// How much an arm would win by if all were equal. A difference has the noise of two runs, and the baseline's is the same for all arms.
std::string luck_text(const Arms& arms, const Results& r) {
  double squares = 0;
  int64_t count = 0;
  for (const Difference& d : r.differences)
    if (d.count >= kFewestForAnInterval) squares += d.deviation * d.deviation / static_cast<double>(d.count), ++count;
  if (count == 0) return {};
  const double error = std::sqrt(squares / static_cast<double>(count) / 2);
  return fmt::format(
      "If all arms were equal, the best of {} would still be {:.4f} ahead of the baseline by luck, on average.\n",
      arms.all.size() - 1, selection_floor(count, error).expected);
}

Json json_of(const Interval& i) { return Json::array({i.low, i.high}); }
Json number(double x) { return std::isfinite(x) ? Json(x) : Json(nullptr); }

Json arm_json(const Grid& grid, const Arms& arms, size_t a, const Results& r, const Difference* d) {
  Json runs = Json::array();
  for (size_t s = 0; s < grid.seeds.size(); ++s)
    runs.push_back({{"seed", grid.seeds[s]}, {"value", number(r.of_arm[a][s])}});
  Json out{{"arm", arms.all[a].name},
           {"runs", runs},
           {"count", r.means[a].count},
           {"lost", r.means[a].lost},
           {"mean", r.means[a].count > 0 ? Json(r.means[a].mean) : Json(nullptr)},
           {"deviation", r.means[a].deviation}};
  if (r.means[a].t_interval) out["t_interval"] = json_of(*r.means[a].t_interval);
  if (!d) return out;
  Json difference{{"pairs", d->count},
                  {"lost", d->lost},
                  {"mean", d->count > 0 ? Json(d->mean) : Json(nullptr)},
                  {"deviation", d->deviation}};
  if (d->t_interval) difference["t_interval"] = json_of(*d->t_interval);
  if (d->bootstrap_interval) difference["bootstrap_interval"] = json_of(*d->bootstrap_interval);
  if (d->p) difference["p"] = *d->p;
  if (d->adjusted_p) difference["holm_p"] = *d->adjusted_p;
  if (d->resolves) difference["resolves"] = *d->resolves;
  out["difference"] = std::move(difference);
  return out;
}

}  // namespace

StudyReport report_of(const Grid& grid, const Arms& arms, const std::vector<Cell>& cells,
                      const std::vector<std::optional<CellResult>>& results) {
  StudyReport report;
  int64_t num_complete = 0, num_missing = 0;
  std::string lost;
  Json lost_json = Json::array();
  for (size_t i = 0; i < cells.size(); ++i) {
    if (!results[i]) ++num_missing;
    else if (results[i]->state == CellResult::State::complete) ++num_complete;
    else {
      ++report.num_lost;
      const std::string why =
          str(to_string(results[i]->state), results[i]->problem.empty() ? "" : ": ", results[i]->problem);
      lost += str("lost: ", cells[i].folder, " ", why, "\n");
      lost_json.push_back({{"run", cells[i].folder}, {"why", why}});
    }
  }
  report.summary = fmt::format("study {}: {} arms x {} seeds, {} of {} runs complete{}{}\n", grid.name, arms.all.size(),
                               grid.seeds.size(), num_complete, cells.size(),
                               report.num_lost ? fmt::format(", {} lost", report.num_lost) : "",
                               num_missing ? fmt::format(", {} not run yet", num_missing) : "");
  report.text = report.summary + lost;
  report.text += fmt::format(
      "intervals at {:g} %; p of the paired t-test, adjusted by Holm over the {} comparisons of a metric; resolves: "
      "the "
      "smallest difference that these seeds find in 80 of 100 studies\n\n",
      100 * grid.confidence, arms.all.size() - 1);
  if (static_cast<int64_t>(grid.seeds.size()) < kFewestForAnInterval)
    report.text += str("No intervals: ", grid.seeds.size(), " seeds, and they need ", kFewestForAnInterval, ".\n\n");
  Json out{{"study", grid.name},       {"baseline", arms.all[arms.baseline].name},
           {"seeds", grid.seeds},      {"confidence", grid.confidence},
           {"complete", num_complete}, {"lost", lost_json},
           {"not_run", num_missing}};
  Json settings = Json::array(), metrics = Json::array();
  for (const Combination& arm : arms.all)
    settings.push_back({{"arm", arm.name},
                        {"parameters", arm.params},
                        {"ffn_width_of_match", arm.matched_ffn},
                        {"flops_per_token", arm.flops_per_token},
                        {"overrides", arm.overrides}});
  for (const std::string& metric : grid.metrics) {
    const Results r = results_of(grid, arms, cells, results, metric);
    report.tables.push_back(metric_table(grid, arms, metric, r));
    report.text += text_of(report.tables.back()) + "\n";
    if (&metric == &grid.metrics[0])
      report.luck = luck_text(arms, r), report.text += report.luck + (report.luck.empty() ? "" : "\n");
    Json rows = Json::array();
    size_t next = 0;
    for (size_t a = 0; a < arms.all.size(); ++a)
      rows.push_back(arm_json(grid, arms, a, r, a == arms.baseline ? nullptr : &r.differences[next++]));
    metrics.push_back({{"metric", metric}, {"arms", rows}});
  }
  out["arms"] = std::move(settings), out["metrics"] = std::move(metrics);
  report.json = out.dump(1) + "\n";
  return report;
}

}  // namespace weft::study
