#include "trainers/study/claim_runs.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "trainers/config/grid.pb.h"
#include "trainers/config/text_reader.h"
#include "trainers/study/origin.h"
#include "weft/core/error.h"
#include "weft/io/files.h"
#include "weft/io/metrics.h"

namespace weft::study {

namespace {

using Json = nlohmann::ordered_json;

constexpr uint64_t kMostReportBytes = uint64_t{1} << 28;

// On one line. Bytes that are no UTF-8 are replaced.
std::string line_of(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

// A text as it comes out of a JSON file.
std::string from_json(const std::string& text) { return Json::parse(line_of(Json(text))).get<std::string>(); }

// What decides: all but words for readers and the place of the base config.
std::string essence_of(const std::string& text, const std::string& name) {
  config::Grid grid;
  config::read_text(grid, text, {name, true, "", "/"}, nullptr);
  const std::string base = grid.base();
  grid.set_base(base.substr(base.find_last_of('/') + 1));
  grid.clear_minutes();
  for (config::Claim& claim : *grid.mutable_claim()) {
    claim.clear_title(), claim.clear_text(), claim.clear_paper(), claim.clear_part();
  }
  return config::to_text(grid);  // the wire format takes no bytes that are no UTF-8
}

// `own`: the grid's text, as the file would have it.
void require_same_grid(const Grid& grid, const std::string& own, const std::string& file, const std::string& text,
                       const std::string& first_do) {
  if (essence_of(text, file) == essence_of(own, grid.file)) return;
  fail(str(file, ": is another grid than ", grid.file, ", or has other rules for its claims"),
       first_do +
           "run weft ablate on the grid with another --out: a rule that is changed after the runs decides nothing");
}

// A file is named without its folders, which are those of one machine.
std::string override_text(const std::string& override) {
  const size_t equals = override.find('='), slash = override.find_last_of('/');
  return equals == std::string::npos || slash == std::string::npos || override.find("path") > equals
             ? override
             : override.substr(0, equals + 1) + override.substr(slash + 1);
}

double seconds_of(const std::string& cells) {
  double seconds = 0;
  if (!io::is_folder(cells)) return 0;
  for (const std::string& cell : io::list_folder(cells)) {
    const std::string file = str(cells, "/", cell, "/metrics.jsonl");
    if (!io::file_exists(file)) continue;
    const std::vector<io::MetricsRecord> records = io::apply_rewinds(io::read_metrics(file));
    if (!records.empty()) seconds += records.back().time_s;
  }
  return seconds;
}

// Machines without the names of their hosts.
void add_origins(const std::string& cells, ClaimRuns& runs) {
  if (!io::is_folder(cells)) return;
  std::set<std::string> machines, builds;
  for (const std::string& cell : io::list_folder(cells)) {
    const std::string folder = str(cells, "/", cell);
    if (!io::file_exists(folder + "/environment.txtpb")) continue;
    const Origin origin = origin_of(folder);
    machines.insert(from_json(origin.machine)), builds.insert(origin.build);
  }
  runs.machines.assign(machines.begin(), machines.end());
  runs.num_builds = std::ssize(builds);
}

std::vector<double> values_of(const Grid& grid, const Json& runs) {
  std::vector<double> values;
  for (const Json& run : runs) {
    if (values.size() >= grid.seeds.size() || run.at("seed").get<int64_t>() != grid.seeds[values.size()])
      throw std::invalid_argument("its runs have other seeds than the grid");
    const Json& value = run.at("value");
    values.push_back(value.is_null() ? std::numeric_limits<double>::quiet_NaN() : value.get<double>());
  }
  if (values.size() != grid.seeds.size()) throw std::invalid_argument("it has fewer seeds than the grid");
  return values;
}

void read_report(const Grid& grid, const Json& report, ClaimRuns& runs) {
  if (report.at("study").get<std::string>() != from_json(grid.name))
    throw std::invalid_argument("it is of another study");
  runs.num_complete = report.at("complete").get<int64_t>();
  const auto missing = report.at("not_run").get<int64_t>();
  for (const Json& lost : report.at("lost"))
    runs.lost.push_back(str(lost.at("run").get<std::string>(), ": ", lost.at("why").get<std::string>()));
  runs.num_runs = runs.num_complete + missing + std::ssize(runs.lost);
  runs.state = missing > 0 ? ClaimRuns::State::unfinished : ClaimRuns::State::complete;
  for (const Json& arm : report.at("arms")) {
    ClaimRuns::Arm& one = runs.arms[arm.at("arm").get<std::string>()];
    // Reports that stand in studies' folders have either name.
    const auto params = arm.find("parameters_without_embeddings");
    one.params = (params != arm.end() ? *params : arm.at("parameters")).get<int64_t>();
    one.tokens = arm.at("tokens").get<int64_t>();
  }
  for (const Json& metric : report.at("metrics"))
    for (const Json& arm : metric.at("arms"))
      runs.arms[arm.at("arm").get<std::string>()].values[metric.at("metric").get<std::string>()] =
          values_of(grid, arm.at("runs"));
  for (const Claim& claim : grid.claims)
    for (const Contrast& contrast : claim.contrasts)
      for (const std::string& name : {contrast.arm, contrast.baseline})
        if (const auto arm = runs.arms.find(name); arm == runs.arms.end() || !arm->second.values.contains(claim.metric))
          throw std::invalid_argument(str("it has no ", claim.metric, " of ", name));
}

}  // namespace

ClaimRuns read_claim_runs(const Grid& grid, const std::string& folder) {
  ClaimRuns runs;
  const std::string grid_file = folder + "/grid.txtpb", report_file = folder + "/report.json";
  if (!io::file_exists(grid_file)) return runs;
  const std::string text = config::read_text_file(grid_file, config::kGridText);
  require_same_grid(grid, grid.text, grid_file, text, "");
  for (const std::string& override : overrides_in(text)) runs.set.push_back(from_json(override_text(override)));
  if (!io::file_exists(report_file)) return runs;  // killed before its first report
  try {
    read_report(grid, Json::parse(io::read_file(report_file, kMostReportBytes)), runs);
  } catch (const Error&) { throw; } catch (const std::exception& e) {  // of JSON, or of what is in it
    fail(str(report_file, ": is not the report of ", grid.file, ": ", std::string_view(e.what())),
         "run weft ablate again: it writes the report anew from the results that are there");
  }
  add_origins(folder + "/cells", runs);
  runs.training_s = seconds_of(folder + "/cells") + seconds_of(folder + "/tuning/cells");
  return runs;
}

// In the words of a report, a line for each arm of a metric.
std::string claim_record(const Grid& grid, const ClaimRuns& runs) {
  Json lost = Json::array();
  for (const std::string& text : runs.lost) {
    const size_t colon = text.find(": ");
    lost.push_back({{"run", text.substr(0, colon)}, {"why", text.substr(colon + 2)}});
  }
  std::string text = fmt::format(
      "{{\"study\": {},\n\"grid\": {},\n\"set\": {},\n\"machines\": {},\n\"builds\": {},\n\"training_s\": "
      "{},\n\"complete\": {},\n"
      "\"not_run\": 0,\n\"lost\": {},\n\"arms\": [",
      line_of(Json(grid.name)), line_of(Json(grid.text)), line_of(Json(runs.set)), line_of(Json(runs.machines)),
      runs.num_builds, runs.training_s, runs.num_complete, line_of(lost));
  std::string_view comma = "";
  for (const auto& [name, arm] : runs.arms) {
    const Json line{{"arm", name}, {"parameters_without_embeddings", arm.params}, {"tokens", arm.tokens}};
    text += fmt::format("{}\n {}", comma, line_of(line)), comma = ",";
  }
  text += "],\n\"metrics\": [", comma = "";
  std::set<std::string> of_claims;
  for (const Claim& claim : grid.claims) of_claims.insert(claim.metric);
  for (const std::string& metric : of_claims) {
    text += fmt::format("{}\n {{\"metric\": {}, \"arms\": [", comma, line_of(Json(metric))), comma = "";
    for (const auto& [name, arm] : runs.arms) {
      const auto values = arm.values.find(metric);
      if (values == arm.values.end()) continue;
      Json line{{"arm", name}, {"runs", Json::array()}};
      for (size_t i = 0; i < grid.seeds.size(); ++i)
        line["runs"].push_back({{"seed", grid.seeds[i]}, {"value", values->second[i]}});  // not a number: null
      text += fmt::format("{}\n  {}", comma, line_of(line)), comma = ",";
    }
    text += "]}", comma = ",";
  }
  return text + "]}\n";
}

ClaimRuns read_claim_record(const Grid& grid, const std::string& file) {
  ClaimRuns runs;
  try {
    const Json record = Json::parse(io::read_file(file, kMostReportBytes));
    require_same_grid(grid, from_json(grid.text), file, record.at("grid").get<std::string>(), "remove it, and ");
    runs.set = record.at("set").get<std::vector<std::string>>();
    runs.machines = record.at("machines").get<std::vector<std::string>>();
    runs.num_builds = record.at("builds").get<int64_t>();
    runs.training_s = record.at("training_s").get<double>();
    read_report(grid, record, runs);
  } catch (const Error&) { throw; } catch (const std::exception& e) {
    fail(str(file, ": is not a record of ", grid.file, ": ", std::string_view(e.what())),
         "remove it, and run weft claims --runs DIR --keep on the study's folder: it writes the record anew");
  }
  return runs;
}

}  // namespace weft::study
