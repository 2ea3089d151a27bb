// report.html of a study: the tables of the text, loss curves, and what the arms differ in.
#include <map>

#include "trainers/config/config.h"
#include "trainers/run/facts.h"
#include "trainers/study/report_parts.h"
#include "weft/io/files.h"

namespace weft::study {

namespace {

std::vector<io::MetricsRecord> records_of(const std::string& folder, const Cell& cell) {
  const std::string file = run_folder(folder, cell) + "/metrics.jsonl";
  if (!io::file_exists(file)) return {};
  return io::apply_rewinds(io::read_metrics(file));
}

// Mean over the seeds of each arm, with a band from the lowest to the highest seed.
io::Plot curves_of(const std::string& title, const std::string& key, const std::string& unit, const StudyData& data,
                   const std::vector<std::vector<io::MetricsRecord>>& records) {
  io::Plot plot{.title = title, .x_label = "step", .y_label = unit};
  for (size_t a = 0; a < data.arms.all.size(); ++a) {
    std::map<int64_t, SpreadPoint> steps;
    for (size_t i = 0; i < data.cells.size(); ++i)
      if (data.cells[i].combination == a)
        for (const io::MetricsRecord& record : records[i])
          if (const auto value = record.value(key)) steps[record.step].add(*value);
    io::PlotSeries series = series_of(data, a, {steps.begin(), steps.end()});
    if (!series.points.empty()) plot.series.push_back(std::move(series));
  }
  return plot;
}

// How far each arm is from the baseline at every step, seed by seed: what all arms share is not in it.
io::Plot gaps_of(const std::string& title, const std::string& key, const std::string& unit, const StudyData& data,
                 const std::vector<std::vector<io::MetricsRecord>>& records) {
  io::Plot plot{.title = title, .x_label = "step", .y_label = unit};
  std::map<int64_t, std::map<int64_t, double>> baseline;  // by seed and step
  for (size_t i = 0; i < data.cells.size(); ++i)
    if (data.cells[i].combination == data.arms.baseline)
      for (const io::MetricsRecord& record : records[i])
        if (const auto value = record.value(key)) baseline[data.cells[i].seed][record.step] = *value;
  for (size_t a = 0; a < data.arms.all.size(); ++a) {
    std::map<int64_t, SpreadPoint> steps;
    for (size_t i = 0; a != data.arms.baseline && i < data.cells.size(); ++i) {
      if (data.cells[i].combination != a) continue;
      const std::map<int64_t, double>& of_seed = baseline[data.cells[i].seed];
      for (const io::MetricsRecord& record : records[i])
        if (const auto value = record.value(key))
          if (const auto at = of_seed.find(record.step); at != of_seed.end())
            steps[record.step].add(*value - at->second);
    }
    io::PlotSeries series = series_of(data, a, {steps.begin(), steps.end()});
    if (!series.points.empty()) plot.series.push_back(std::move(series));
  }
  return plot;
}

io::ReportTable differences_of(const Arms& arms) {
  io::ReportTable table{.title = "", .header = {"field", "baseline", "arm", "in the arm"}, .rows = {}};
  const Combination& baseline = arms.all[arms.baseline];
  for (const Combination& arm : arms.all)
    for (const config::Difference& d : config::differences(baseline.experiment, arm.experiment))
      table.rows.push_back({d.path, d.a.empty() ? "not set" : d.a, arm.name, d.b.empty() ? "not set" : d.b});
  return table;
}

}  // namespace

std::vector<std::string> write_study_page(const StudyData& study, const StudyReport& report) {
  const auto& [folder, grid, arms, cells, results, tuning] = study;
  std::vector<std::vector<io::MetricsRecord>> records;
  std::string environment;
  io::ReportTable lost{.title = "Runs without a result", .header = {"run", "state", "message"}, .rows = {}};
  for (size_t i = 0; i < cells.size(); ++i) {
    records.push_back(records_of(folder, cells[i]));
    const std::string file = run_folder(folder, cells[i]) + "/environment.txtpb";
    if (environment.empty() && io::file_exists(file)) environment = io::read_file(file, uint64_t{1} << 20);
    if (results[i] && results[i]->state != CellResult::State::complete)
      lost.rows.push_back({cells[i].folder, std::string(to_string(results[i]->state)), results[i]->problem});
  }
  io::ReportSection arms_section{
      .heading = "Arms",
      .text = str(report.summary.substr(0, report.summary.find_last_not_of('\n') + 1), ". ", report.luck, " ",
                  report.conclusion, " Intervals are of the mean difference over the seeds."),
      .pictures = report.pictures,
      .tables = report.tables};
  if (!lost.rows.empty()) arms_section.tables.push_back(std::move(lost));
  io::ReportData data{.title = "Study " + grid.name, .facts = {}, .first = {std::move(arms_section)}};
  for (auto& fact : train::run_facts(arms.all[arms.baseline].experiment, environment))
    if (fact.first == "arithmetic" || fact.first == "build" || fact.first == "machine")
      data.facts.push_back(std::move(fact));
  io::Plot validation = curves_of("Validation loss", "val/loss", "nats per token", study, records);
  io::Plot training = curves_of("Training loss", "train/loss", "nats per token", study, records);
  const std::string& baseline = arms.all[arms.baseline].name;
  io::Plot gaps = gaps_of("Training loss minus that of " + baseline, "train/loss", "nats per token", study, records);
  for (io::Plot* plot : {&validation, &training, &gaps})
    if (!plot->series.empty()) data.plots.push_back(std::move(*plot));
  data.sections = report.sections;
  for (io::ReportSection& section : diagnostics_sections(study)) data.sections.push_back(std::move(section));
  data.sections.push_back({.heading = "What the arms differ in",
                           .text = "Fields of the resolved configs that are not those of the baseline, " +
                                   arms.all[arms.baseline].name + ".",
                           .tables = {differences_of(arms)}});
  data.config = grid.text + (environment.empty() ? "" : "\n" + environment);
  return io::write_report(folder + "/report.html", data);
}

}  // namespace weft::study
