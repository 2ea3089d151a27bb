#include "trainers/study/study_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "trainers/config/config_error.h"
#include "trainers/study/conclusion.h"
#include "trainers/study/report_parts.h"
#include "weft/trainers/statistics.h"

namespace weft::study {

namespace {

using Json = nlohmann::ordered_json;

// What a seed has of an arm: the metric; a run without it; a run that diverged or failed; no run.
enum class Had { value, no_value, lost, no_run };

// Results of one metric: for each arm one number per seed, NaN where a run has none.
struct Results {
  std::vector<std::vector<double>> of_arm;
  std::vector<std::vector<Had>> had;
  std::vector<Mean> means;
  std::vector<Difference> differences;  // of every arm but the baseline, in their order
};

std::vector<Had> had_of(const StudyData& data, size_t arm, const std::vector<double>& values) {
  std::vector<Had> had(values.size(), Had::no_run);
  for (size_t i = 0; i < data.cells.size(); ++i) {
    const std::optional<CellResult>& result = data.results[i];
    if (data.cells[i].combination != arm || !result) continue;
    const auto seed =
        static_cast<size_t>(std::ranges::find(data.grid.seeds, data.cells[i].seed) - data.grid.seeds.begin());
    had[seed] = result->state != CellResult::State::complete ? Had::lost
                : std::isfinite(values[seed])                ? Had::value
                                                             : Had::no_value;
  }
  return had;
}

// Seeds that are no pair, and why. A pair of which one run is lost is lost, whatever became of the other.
struct NoPairs {
  int64_t lost = 0, not_run = 0, no_value = 0;
};
NoPairs no_pairs_of(const std::vector<Had>& arm, const std::vector<Had>& baseline) {
  NoPairs count;
  for (size_t s = 0; s < arm.size(); ++s) {
    const Had worse = std::max(arm[s], baseline[s]);
    const bool is_lost = arm[s] == Had::lost || baseline[s] == Had::lost;
    if (is_lost) ++count.lost;
    else if (worse == Had::no_run) ++count.not_run;
    else if (worse == Had::no_value) ++count.no_value;
  }
  return count;
}

Results results_of(const StudyData& data, const std::string& metric) {
  Results all;
  const StatisticsOptions options{.confidence = data.grid.confidence};
  std::vector<std::vector<double>> others;
  for (size_t a = 0; a < data.arms.all.size(); ++a) {
    all.of_arm.push_back(values_of(data, a, metric));
    all.had.push_back(had_of(data, a, all.of_arm[a]));
    all.means.push_back(mean_of(all.of_arm[a], options));
    if (a != data.arms.baseline) others.push_back(all.of_arm[a]);
  }
  all.differences = compare(all.of_arm[data.arms.baseline], others, options);
  return all;
}

std::string interval_text(const std::optional<Interval>& interval) {
  return interval ? fmt::format("[{:+.4f}, {:+.4f}]", interval->low, interval->high) : "-";
}

// How many seeds would find the effect that the grid asks for among all contrasts, by the deviation that was seen. 0: over 10 million.
std::optional<int64_t> seeds_for_effect(const Grid& grid, const Results& r, const Difference* d) {
  if (!d || d->count < kFewestForAnInterval || grid.effect == 0) return {};
  const auto contrasts = std::ranges::count_if(r.differences, [](const Difference& one) { return one.p.has_value(); });
  const auto needed =
      seeds_needed(d->deviation, grid.effect, {.confidence = grid.confidence, .contrasts = int64_t{contrasts}});
  return needed.value_or(0);
}

// The runs of an arm that were to be made.
struct Runs {
  int64_t all = 0, lost = 0, not_run = 0;
};
Runs runs_of(const StudyData& data, size_t arm) {
  Runs count;
  for (size_t i = 0; i < data.cells.size(); ++i) {
    if (data.cells[i].combination != arm) continue;
    ++count.all;
    if (!data.results[i]) ++count.not_run;
    else if (data.results[i]->state != CellResult::State::complete) ++count.lost;
  }
  return count;
}

std::string runs_text(const Mean& mean, const Runs& runs) {
  return fmt::format("{} of {}{}{}", mean.count, runs.all, runs.lost ? fmt::format(", {} lost", runs.lost) : "",
                     runs.not_run ? fmt::format(", {} not run", runs.not_run) : "");
}

io::ReportTable metric_table(const StudyData& data, const std::string& metric, const Results& r) {
  const auto& grid = data.grid;
  const auto& arms = data.arms;
  io::ReportTable table{.title = fmt::format("{}: arms minus {}, paired by seed", metric, arms.all[arms.baseline].name),
                        .header = {"arm", "ffn", metric, "deviation", "difference", "t interval", "bootstrap", "p",
                                   "Holm p", "resolves"}};
  if (grid.effect > 0) table.header.push_back(fmt::format("seeds for {:g}", grid.effect));
  table.header.push_back("runs");
  size_t next = 0;
  for (size_t a = 0; a < arms.all.size(); ++a) {
    const Combination& arm = arms.all[a];
    const Mean& mean = r.means[a];
    std::vector<std::string> row{arm.name, arm.matched_ffn ? str(arm.matched_ffn) : "-",
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
    if (grid.effect > 0) {
      const auto seeds = seeds_for_effect(grid, r, a == arms.baseline ? nullptr : &r.differences[next - 1]);
      row.push_back(!seeds ? "-" : *seeds > 0 ? str(*seeds) : "over 10 million");
    }
    row.push_back(runs_text(mean, runs_of(data, a)));
    table.rows.push_back(std::move(row));
  }
  return table;
}

// The differences of a table with their t intervals, and those of single seeds.
io::Intervals picture_of(const Grid& grid, const Arms& arms, const std::string& metric, const Results& r) {
  const std::string& baseline = arms.all[arms.baseline].name;
  io::Intervals picture{
      .title = fmt::format("{}: difference from {}, with {:g} % intervals", metric, baseline, 100 * grid.confidence),
      .x_label = fmt::format("{} minus that of {}; circles: single seeds", metric, baseline)};
  size_t next = 0;
  for (size_t a = 0; a < arms.all.size(); ++a) {
    if (a == arms.baseline) continue;
    const Difference& d = r.differences[next++];
    if (d.count == 0) continue;
    const Interval interval = d.t_interval.value_or(Interval{d.mean, d.mean});
    io::Intervals::Row row{.name = arms.all[a].name, .middle = d.mean, .low = interval.low, .high = interval.high};
    for (size_t s = 0; s < grid.seeds.size(); ++s) row.points.push_back(r.of_arm[a][s] - r.of_arm[arms.baseline][s]);
    picture.rows.push_back(std::move(row));
  }
  return picture;
}

// How much an arm would win by if all were equal. A difference has the noise of two runs, of which the baseline's is the same for all arms.
struct Luck {
  int64_t arms = 0;  // beside the baseline, with as many runs as an interval needs
  SelectionFloor floor = {};
};
std::optional<Luck> luck_of(const Grid& grid, const Results& r) {
  double squares = 0;
  int64_t count = 0;
  for (const Difference& d : r.differences)
    if (d.count >= kFewestForAnInterval) squares += d.deviation * d.deviation / static_cast<double>(d.count), ++count;
  if (count < 2) return {};  // nothing was chosen among
  const double error = std::sqrt(squares / static_cast<double>(count) / 2);
  return Luck{count, selection_floor(count, error, {.confidence = grid.confidence})};
}

std::string luck_text(const Grid& grid, const Results& r, const Luck& luck) {
  const std::string which =
      luck.arms == std::ssize(r.differences) ? str(luck.arms) : fmt::format("the {} that have intervals", luck.arms);
  return fmt::format(
      "If all arms were equal, the best of {} would still be {:.4f} ahead of the baseline by luck, on average, and "
      "more than {:.4f} in {:g} of 100 studies.\n",
      which, luck.floor.expected, luck.floor.bound, 100 * (1 - grid.confidence));
}

Json json_of(const Interval& i) { return Json::array({i.low, i.high}); }
Json number(double x) { return std::isfinite(x) ? Json(x) : Json(nullptr); }

Json arm_json(const StudyData& data, size_t a, const Results& r, const Difference* d) {
  const auto& grid = data.grid;
  const auto& arms = data.arms;
  Json runs = Json::array();
  for (size_t s = 0; s < grid.seeds.size(); ++s)
    runs.push_back({{"seed", grid.seeds[s]}, {"value", number(r.of_arm[a][s])}});
  const Runs of_arm = runs_of(data, a);
  Json out{{"arm", arms.all[a].name},          {"runs", runs},
           {"count", r.means[a].count},        {"lost", of_arm.lost},
           {"not_run", of_arm.not_run},        {"mean", r.means[a].count > 0 ? Json(r.means[a].mean) : Json(nullptr)},
           {"deviation", r.means[a].deviation}};
  if (r.means[a].t_interval) out["t_interval"] = json_of(*r.means[a].t_interval);
  if (!d) return out;
  const NoPairs no_pairs = no_pairs_of(r.had[a], r.had[arms.baseline]);
  Json difference{{"pairs", d->count},
                  {"lost", no_pairs.lost},
                  {"not_run", no_pairs.not_run},
                  {"without_value", no_pairs.no_value},
                  {"mean", d->count > 0 ? Json(d->mean) : Json(nullptr)},
                  {"deviation", d->deviation}};
  if (d->t_interval) difference["t_interval"] = json_of(*d->t_interval);
  if (d->bootstrap_interval) difference["bootstrap_interval"] = json_of(*d->bootstrap_interval);
  if (d->p) difference["p"] = *d->p;
  if (d->adjusted_p) difference["holm_p"] = *d->adjusted_p;
  if (d->resolves) difference["resolves"] = *d->resolves;
  if (const auto seeds = seeds_for_effect(grid, r, d))
    difference["seeds_for_effect"] = *seeds > 0 ? Json(*seeds) : Json("over 10 million");
  out["difference"] = std::move(difference);
  return out;
}

// Results whose runs had another checksum than the cells have here.
std::vector<Cell> taken_over(const StudyData& data) {
  std::vector<Cell> taken;
  if (data.tuning) taken = data.tuning->taken_over;
  std::ranges::copy_if(data.cells, std::back_inserter(taken), [](const Cell& cell) { return !cell.meant.empty(); });
  return taken;
}

Json match_json(const Grid& grid) {
  if (!grid.match) return nullptr;
  const Match& match = *grid.match;
  return {{"what", match.what == Match::What::parameters ? "parameters" : "flops"},
          {"by", match.changes_tokens ? "tokens" : "width"},
          {"tolerance", match.tolerance},
          {"multiple", match.changes_tokens ? Json(nullptr) : Json(match.multiple)}};
}

}  // namespace

void require_known_metrics(const StudyData& data) {
  for (const std::string& metric : data.grid.metrics) {
    bool is_known = false, is_any_complete = false;
    std::set<std::string> keys;
    for (const std::optional<CellResult>& result : data.results) {
      if (!result || result->state != CellResult::State::complete) continue;
      is_any_complete = true;
      is_known = is_known || metric_of(*result, metric);
      for (const auto& [key, value] : result->metrics) keys.insert(key);
    }
    if (!is_any_complete || is_known) continue;
    const std::vector<std::string> names(keys.begin(), keys.end());
    const std::string near = config::nearest(metric, names);
    throw config::ConfigError(str(data.grid.file, ": compare: metric ", metric, ": no run has it.",
                                  near.empty() ? "" : " Did you mean '" + near + "'?"),
                              "Name another metric in the grid: the same runs are taken. metrics.jsonl of a run names "
                              "what it has.");
  }
}

StudyReport report_of(const StudyData& data) {
  const auto& [folder, grid, arms, cells, results, tuning] = data;
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
  Json taken_json = Json::array();
  for (const Cell& cell : taken_over(data)) {
    report.taken_over += str("taken over: ", cell.folder, ", which is ", cell.meant, " with other paths or defaults\n");
    taken_json.push_back({{"run", cell.folder}, {"is", cell.meant}});
  }
  report.text = report.summary + report.taken_over + lost;
  report.text += fmt::format(
      "intervals at {:g} %; p of the paired t-test, adjusted by Holm over all arms that have one; resolves: the "
      "smallest difference that these seeds find in 80 of 100 studies by that p\n\n",
      100 * grid.confidence);
  if (static_cast<int64_t>(grid.seeds.size()) < kFewestForAnInterval)
    report.text += str("No intervals: ", grid.seeds.size(), " seeds, and they need ", kFewestForAnInterval, ".\n\n");
  Json out{{"study", grid.name},      {"baseline", arms.all[arms.baseline].name},
           {"seeds", grid.seeds},     {"confidence", grid.confidence},
           {"effect", grid.effect},   {"complete", num_complete},
           {"lost", lost_json},       {"not_run", num_missing},
           {"taken_over", taken_json}};
  report.tables.push_back(arms_table(data));
  report.text += text_of(report.tables[0]) + "\n";
  Json settings = Json::array(), metrics = Json::array(), floor_json;
  const std::vector<std::string> more = metrics_of_arms(data);
  for (size_t a = 0; a < arms.all.size(); ++a) {
    const Combination& arm = arms.all[a];
    Json means = Json::object();
    for (const std::string& metric : more) {
      const Mean mean = mean_of(values_of(data, a, metric));
      means[metric] = mean.count > 0 ? Json(mean.mean) : Json(nullptr);
    }
    settings.push_back({{"arm", arm.name},
                        {"parameters_without_embeddings", arm.params},
                        {"active_parameters_without_embeddings", arm.params - arm.idle_params},
                        {"ffn_width_of_match", arm.matched_ffn},
                        {"off_by", arm.off_by ? Json(*arm.off_by) : Json(nullptr)},
                        {"flops_per_token_without_output_head", arm.flops_per_token},
                        {"tokens", arm.experiment.train().tokens()},
                        {"tuned", arm.tuned},
                        {"overrides", arm.overrides},
                        {"metrics", std::move(means)}});
  }
  for (const std::string& metric : grid.metrics) {
    const Results r = results_of(data, metric);
    report.tables.push_back(metric_table(data, metric, r));
    report.text += text_of(report.tables.back()) + "\n";
    if (io::Intervals picture = picture_of(grid, arms, metric, r); !picture.rows.empty())
      report.pictures.push_back(std::move(picture));
    if (&metric == &grid.metrics[0]) {
      if (const auto luck = luck_of(grid, r)) {
        report.luck = luck_text(grid, r, *luck);
        floor_json = {
            {"metric", metric}, {"arms", luck->arms}, {"expected", luck->floor.expected}, {"bound", luck->floor.bound}};
      }
      report.conclusion = conclusion_of(data, r.differences);
      for (const std::string* text : {&report.luck, &report.conclusion})
        if (!text->empty()) report.text += *text + "\n";
    }
    Json rows = Json::array();
    size_t next = 0;
    for (size_t a = 0; a < arms.all.size(); ++a)
      rows.push_back(arm_json(data, a, r, a == arms.baseline ? nullptr : &r.differences[next++]));
    metrics.push_back({{"metric", metric}, {"arms", rows}});
  }
  out["conclusion"] = report.conclusion;
  out["selection_floor"] = std::move(floor_json), out["match"] = match_json(grid);
  out["arms"] = std::move(settings), out["metrics"] = std::move(metrics);
  std::vector<ReportPart> parts;
  for (const auto& make : {curve_parts, tuning_parts, score_parts, diagnostics_parts, setting_parts})
    for (ReportPart& part : make(data)) parts.push_back(std::move(part));
  parts.push_back(speed_part(data));
  for (ReportPart& part : parts) {
    out[part.key] = Json::parse(part.json);
    report.text += part.section.heading + "\n" + part.section.text + "\n\n";
    for (const io::ReportTable& table : part.section.tables)
      report.text += text_of(table).substr(table.title.empty() ? 1 : 0) + "\n";
    report.sections.push_back(std::move(part.section));
  }
  for (ReportPart& part : parts)
    for (io::ReportSection& section : part.page) report.page_sections.push_back(std::move(section));
  report.json = out.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";  // names of folders may be any bytes
  return report;
}

}  // namespace weft::study
