// What the arms differ in, and by which builds and on which machines the runs were made.
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "trainers/config/config.h"
#include "trainers/run/facts.h"
#include "trainers/study/report_parts.h"

namespace weft::study {

namespace {

using Json = nlohmann::ordered_json;

ReportPart differences_part(const StudyData& data) {
  const Combination& baseline = data.arms.all[data.arms.baseline];
  ReportPart part{
      .key = "differences_of_configs",
      .section = {.heading = "What the arms differ in",
                  .text = "Fields of the resolved configs that are not those of the baseline, " + baseline.name + "."}};
  io::ReportTable table{.title = "", .header = {"field", "baseline", "arm", "in the arm"}, .rows = {}};
  Json json = Json::array();
  for (const Combination& arm : data.arms.all)
    for (const config::Difference& d : config::differences(baseline.experiment, arm.experiment)) {
      if (d.path == "seed" || d.path == "name") continue;  // of single runs
      table.rows.push_back({d.path, d.a.empty() ? "not set" : d.a, arm.name, d.b.empty() ? "not set" : d.b});
      const auto value = [](const std::string& text) { return text.empty() ? Json(nullptr) : Json(text); };
      json.push_back({{"field", d.path}, {"baseline", value(d.a)}, {"arm", arm.name}, {"in_the_arm", value(d.b)}});
    }
  if (!table.rows.empty()) part.section.tables.push_back(std::move(table));
  part.json = json.dump(-1, ' ', false, Json::error_handler_t::replace);
  return part;
}

// "gate=none 3, gate=head 2".
std::string arms_text(const StudyData& data, const OriginOfRuns& origin) {
  std::string text;
  for (size_t a = 0; a < data.arms.all.size(); ++a)
    if (origin.runs[a] > 0) text += str(text.empty() ? "" : ", ", data.arms.all[a].name, " ", origin.runs[a]);
  return text;
}

ReportPart origins_part(const StudyData& data, const std::vector<OriginOfRuns>& origins) {
  ReportPart part{.key = "hardware_and_versions", .section = {.heading = "Hardware and versions"}};
  std::string arithmetic;
  for (const auto& [name, value] : train::run_facts(data.arms.all[data.arms.baseline].experiment, ""))
    if (name == "arithmetic") arithmetic = value;
  part.section.text = str("Arithmetic of the baseline: ", arithmetic, ".");
  if (origins.size() > 1)
    part.section.text +=
        str(" The runs come from ", origins.size(), " builds or machines: what arms differ by may be theirs.");
  io::ReportTable table{.title = "", .header = {"build", "machine", "runs", "of"}, .rows = {}};
  Json json = Json::array();
  for (const OriginOfRuns& one : origins) {
    const std::string machine =
        one.origin.host.empty() ? one.origin.machine : one.origin.host + ": " + one.origin.machine;
    int64_t count = 0;
    Json arms = Json::object();
    for (size_t a = 0; a < data.arms.all.size(); ++a)
      if (one.runs[a] > 0) count += one.runs[a], arms[data.arms.all[a].name] = one.runs[a];
    table.rows.push_back(
        {one.origin.build, machine, str(count), origins.size() > 1 ? arms_text(data, one) : "all arms"});
    json.push_back({{"build", one.origin.build}, {"machine", machine}, {"runs", count}, {"of", std::move(arms)}});
  }
  if (!table.rows.empty()) part.section.tables.push_back(std::move(table));
  part.json = Json{{"arithmetic", arithmetic}, {"origins", std::move(json)}}.dump(-1, ' ', false,
                                                                                  Json::error_handler_t::replace);
  return part;
}

}  // namespace

std::vector<OriginOfRuns> origins_of(const StudyData& data) {
  std::map<Origin, std::vector<int64_t>> runs;
  for (size_t i = 0; i < data.cells.size(); ++i) {
    if (!data.results[i] || data.results[i]->state != CellResult::State::complete) continue;
    std::vector<int64_t>& of_arms = runs[origin_of(run_folder(data.folder, data.cells[i]))];
    of_arms.resize(data.arms.all.size());
    ++of_arms[data.cells[i].combination];
  }
  std::vector<OriginOfRuns> origins;
  for (auto& [origin, of_arms] : runs) origins.push_back({origin, std::move(of_arms)});
  return origins;
}

std::vector<ReportPart> setting_parts(const StudyData& data) {
  return {differences_part(data), origins_part(data, origins_of(data))};
}

}  // namespace weft::study
