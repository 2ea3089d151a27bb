// report.html of a study: the sections of the text with their pictures, diagnostics of each arm, and the grid.
#include "trainers/config/config.h"
#include "trainers/run/facts.h"
#include "trainers/study/report_parts.h"
#include "weft/io/files.h"

namespace weft::study {

std::vector<std::string> write_study_page(const StudyData& study, const StudyReport& report) {
  const auto& [folder, grid, arms, cells, results, tuning] = study;
  std::string environment;
  io::ReportTable lost{.title = "Runs without a result", .header = {"run", "state", "message"}, .rows = {}};
  for (size_t i = 0; i < cells.size(); ++i) {
    const std::string file = run_folder(folder, cells[i]) + "/environment.txtpb";
    if (environment.empty() && io::file_exists(file)) environment = io::read_file(file, uint64_t{1} << 20);
    if (results[i] && results[i]->state != CellResult::State::complete)
      lost.rows.push_back({cells[i].folder, std::string(to_string(results[i]->state)), results[i]->problem});
  }
  io::ReportSection arms_section{
      .heading = "Arms",
      .text = str(report.summary.substr(0, report.summary.find_last_not_of('\n') + 1), ". ", report.taken_over,
                  report.luck, " ", report.conclusion, " Intervals are of the mean difference over the seeds."),
      .pictures = report.pictures,
      .tables = report.tables};
  if (!lost.rows.empty()) arms_section.tables.push_back(std::move(lost));
  io::ReportData data{.title = "Study " + grid.name, .facts = {}, .first = {std::move(arms_section)}};
  const bool is_of_one = origins_of(study).size() < 2;
  for (auto& fact : train::run_facts(arms.all[arms.baseline].experiment, environment))
    if (fact.first == "arithmetic" || (is_of_one && (fact.first == "build" || fact.first == "machine")))
      data.facts.push_back(std::move(fact));
  if (!is_of_one) data.facts.emplace_back("builds and machines", "several: see Hardware and versions");
  data.sections = report.sections;
  data.sections.insert(data.sections.end(), report.page_sections.begin(), report.page_sections.end());
  data.config = grid.text + (environment.empty() ? "" : "\n" + environment);
  return io::write_report(folder + "/report.html", data);
}

}  // namespace weft::study
