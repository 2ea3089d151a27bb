#include "trainers/study/study_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "trainers/console/json_text.h"
#include "trainers/console/progress.h"
#include "trainers/run/memory_estimate.h"
#include "trainers/study/forecast.h"
#include "trainers/study/match.h"
#include "trainers/study/report_parts.h"
#include "trainers/study/tune.h"

namespace weft::study {

namespace {

using Json = nlohmann::ordered_json;

struct Sums {
  double flops = 0, seconds = 0, disk_bytes = 0;
  std::string unknown = {};  // why some arm has no sizes, and with it the sums of time and disk; empty: all have
  void add(int64_t runs, const Combination& arm, const Forecast& f) {
    const auto n = static_cast<double>(runs);
    flops += n * arm.flops_per_token * static_cast<double>(arm.experiment.train().tokens());
    if (f.sizes) seconds += n * f.sizes->seconds, disk_bytes += n * static_cast<double>(f.sizes->disk_bytes);
    else if (unknown.empty()) unknown = arm.name + ": " + f.unknown;
  }
};

io::ReportTable empty_table() {
  return {.title = "",
          .header = {"arm", "runs", "parameters", "active", "without embeddings", "ffn", "MFLOP/token", "tokens",
                     "time", "memory", "disk", "cache", "cache/token"},
          .rows = {}};
}

std::vector<std::string> row_of(const Combination& arm, int64_t runs, const Forecast& f) {
  const Forecast::Sizes* sizes = f.sizes ? &*f.sizes : nullptr;
  return {arm.name,
          str(runs),
          sizes ? str(sizes->params) : "-",
          sizes ? str(sizes->params - arm.idle_params) : "-",
          str(arm.params),
          arm.matched_ffn ? str(arm.matched_ffn) : "-",
          fmt::format("{:.3f}", arm.flops_per_token / 1e6),
          str(arm.experiment.train().tokens()),
          sizes && sizes->seconds > 0 ? cli::duration_text(sizes->seconds) : "-",
          sizes ? train::size_text(sizes->memory_bytes) : "-",
          sizes ? train::size_text(sizes->disk_bytes) : "-",
          train::size_text(f.cache_bytes),
          str(f.cache_bytes_per_token)};
}

Json json_of(const Combination& arm, int64_t runs, const Forecast& f) {
  const auto size = [&](int64_t Forecast::Sizes::*field, int64_t less = 0) {
    return f.sizes ? Json(*f.sizes.*field - less) : Json(nullptr);
  };
  return {{"arm", arm.name},
          {"runs", runs},
          {"ranks", ranks_of(arm.experiment)},
          {"parameters", size(&Forecast::Sizes::params)},
          {"active_parameters", size(&Forecast::Sizes::params, arm.idle_params)},
          {"parameters_without_embeddings", arm.params},
          {"ffn_width_of_match", arm.matched_ffn},
          {"flops_per_token_without_output_head", arm.flops_per_token},
          {"tokens", arm.experiment.train().tokens()},
          {"seconds", f.sizes && f.sizes->seconds > 0 ? Json(f.sizes->seconds) : Json(nullptr)},
          {"memory_bytes", size(&Forecast::Sizes::memory_bytes)},
          {"disk_bytes", size(&Forecast::Sizes::disk_bytes)},
          {"cache_bytes", f.cache_bytes},
          {"cache_bytes_per_token", f.cache_bytes_per_token}};
}

// Of all runs; time and disk where every arm has them.
std::string sums_text(const Sums& sums, int jobs, int64_t tries) {
  std::string text = fmt::format("{:.3g} PFLOP without the output head", sums.flops / 1e15);
  if (sums.unknown.empty())
    text += fmt::format(", {} of checkpoints", train::size_text(static_cast<int64_t>(sums.disk_bytes)));
  if (sums.unknown.empty() && sums.seconds > 0)
    text += fmt::format(", about {} of training by a calibration here{}", cli::duration_text(sums.seconds / jobs),
                        jobs > 1 ? fmt::format(", if {} runs beside each other are as fast as one", jobs) : "");
  text += tries > 0 ? fmt::format("; the {} tries of the tuning are in these sums\n", tries) : "\n";
  if (!sums.unknown.empty())
    text += fmt::format("parameters, time, memory and disk are not known ({}): set model.vocab to have them\n",
                        sums.unknown);
  return text;
}

std::string heading(const Grid& grid, const Arms& arms, size_t runs, int jobs) {
  int64_t ranks = 1;
  for (const Combination& arm : arms.all) ranks = std::max(ranks, ranks_of(arm.experiment));
  return fmt::format("study {}: {} arms x {} seeds, {} runs of {}{} threads, {} at a time\n", grid.name,
                     arms.all.size(), grid.seeds.size(), runs, ranks > 1 ? fmt::format("up to {} ranks x ", ranks) : "",
                     grid.threads, jobs);
}

// They are made of all arms, also of those that --only leaves out.
int64_t tries_of_arm(const Grid& grid) {
  return grid.tune ? static_cast<int64_t>(grid.tune->values.size() * grid.tune->seeds.size()) : 0;
}

}  // namespace

StudyPlan plan_of(const Grid& grid, const Arms& arms, const std::vector<Cell>& cells, int jobs, bool has_times,
                  const cli::Extensions& own) {
  const int64_t tries_each = tries_of_arm(grid), num_tries = tries_each * std::ssize(arms.all);
  const Arms tried = grid.tune ? tried_arms(grid, arms, own) : Arms();
  io::ReportTable table = empty_table();
  Json rows = Json::array();
  Sums sums;
  Forecaster forecaster(grid, has_times, own);
  for (size_t a = 0; a < arms.all.size(); ++a) {
    const Combination& arm = arms.all[a];
    const auto runs = std::ranges::count(cells, a, &Cell::combination);
    const bool is_tried_as_it_is = grid.tune && grid.tune->set.empty();
    if (runs == 0 && tries_each == 0) continue;  // left out by --only
    Forecast forecast;
    if (runs > 0 || is_tried_as_it_is) forecast = forecaster.of(arm);
    if (tries_each > 0) sums.add(tries_each, tried.all[a], is_tried_as_it_is ? forecast : forecaster.of(tried.all[a]));
    if (runs == 0) continue;
    sums.add(runs, arm, forecast);
    table.rows.push_back(row_of(arm, runs, forecast));
    rows.push_back(json_of(arm, runs, forecast));
  }
  StudyPlan plan{.text = heading(grid, arms, cells.size(), jobs), .json = {}};
  if (grid.tune)
    plan.text +=
        fmt::format("tuning of {}: {} arms x {} values x {} seeds before them, more where the best lies at an edge\n",
                    grid.tune->path, arms.all.size(), grid.tune->values.size(), grid.tune->seeds.size());
  plan.text += text_of(table).substr(1);
  if (grid.match) plan.text += match_text(grid, arms) + "\n";
  plan.text += sums_text(sums, jobs, num_tries);
  Json out{{"study", grid.name},
           {"seeds", grid.seeds},
           {"runs", cells.size()},
           {"threads", grid.threads},
           {"jobs", jobs},
           {"arms", rows},
           {"flops_without_output_head", sums.flops},
           {"disk_bytes", sums.unknown.empty() ? Json(sums.disk_bytes) : Json(nullptr)},
           {"seconds", sums.unknown.empty() && sums.seconds > 0 ? Json(sums.seconds / jobs) : Json(nullptr)}};
  if (grid.tune)
    out["tuning"] = {
        {"path", grid.tune->path}, {"values", grid.tune->values}, {"seeds", grid.tune->seeds}, {"tries", num_tries}};
  plan.json = cli::json_text(out);
  return plan;
}

}  // namespace weft::study
