#include "trainers/study/scores.h"

#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "weft/core/error.h"

namespace weft::study {

namespace {

using Json = nlohmann::ordered_json;

// NaN and infinities are null in JSON, and a loss of no targets is left out.
double number_of(const Json& row, const char* key) {
  const auto at = row.find(key);
  return at == row.end() || at->is_null() ? std::nan("") : at->get<double>();
}

Scores::Length length_of(const Json& row) {
  Scores::Length score{.length = row.at("length").get<int64_t>(), .loss = number_of(row, "loss")};
  if (row.contains("by_position"))
    for (const Json& part : row["by_position"])
      score.positions.push_back({.from = part.at("from").get<int64_t>(),
                                 .to = part.at("to").get<int64_t>(),
                                 .loss = number_of(part, "loss")});
  return score;
}

Scores::Task task_of(const Json& row) {
  Scores::Task score{.name = row.at("task").get<std::string>(),
                     .length = row.at("length").get<int64_t>(),
                     .accuracy = number_of(row, "accuracy"),
                     .loss = number_of(row, "loss")};
  if (row.contains("row_hits")) {
    score.hits = row["row_hits"].get<std::vector<int64_t>>();
    score.targets = row.at("row_targets").get<std::vector<int64_t>>();
  }
  if (auto second = std::next(row.begin(), 2); second.key() != "rows")
    score.size = fmt::format("{} {}", second.value().get<int64_t>(), second.key());
  if (row.contains("groups"))
    for (const Json& group : row["groups"])
      score.groups.emplace_back(group.at("group").get<std::string>(), number_of(group, "accuracy"));
  return score;
}

}  // namespace

std::vector<std::vector<std::string>> eval_calls(const Evals& evals) {
  std::vector<std::vector<std::string>> calls;
  if (!evals.lengths.empty() || evals.by_position) {
    std::vector<std::string>& call = calls.emplace_back();
    if (!evals.lengths.empty()) call.push_back(fmt::format("--lengths={}", fmt::join(evals.lengths, ",")));
    if (evals.by_position) call.push_back("--by-position");
  }
  if (!evals.tasks.empty()) {
    std::vector<std::string>& call = calls.emplace_back();
    call.push_back(fmt::format("--tasks={}", fmt::join(evals.tasks, ",")));
    call.push_back("--by-row");
    call.push_back(fmt::format("--rows={}", evals.rows));
    if (!evals.task_lengths.empty()) call.push_back(fmt::format("--lengths={}", fmt::join(evals.task_lengths, ",")));
  }
  return calls;
}

Scores scores_of(const std::vector<std::string>& answers) {
  Scores scores;
  for (const std::string& answer : answers) try {
      const Json in = Json::parse(answer);
      if (in.contains("validation"))
        for (const Json& row : in["validation"]) scores.lengths.push_back(length_of(row));
      else
        for (const Json& row : in.at("tasks")) scores.tasks.push_back(task_of(row));
    } catch (const Json::exception& e) {
      fail(str("scores of a run: ", std::string_view(e.what())), "remove the run's result, and it is evaluated again");
    }
  return scores;
}

void add_metrics(const Scores& scores, std::map<std::string, double>& metrics) {
  for (const Scores::Length& length : scores.lengths) metrics[str("val/loss@", length.length)] = length.loss;
  std::map<std::string, std::pair<double, int>> sums;
  std::map<std::string, std::set<int64_t>> lengths;
  for (const Scores::Task& task : scores.tasks) {
    const std::string name = str("task/", task.name, "/accuracy");
    lengths[name].insert(task.length);
    std::vector<std::string> keys{name, str(name, "@", task.length)};
    if (!task.size.empty()) keys.push_back(str(name, "/", task.size.substr(0, task.size.find(' '))));
    for (const std::string& key : keys) {
      sums[key].first += task.accuracy;
      ++sums[key].second;
    }
  }
  for (const auto& [key, sum] : sums) {
    const auto at = key.find('@');
    if (at == std::string::npos || lengths[key.substr(0, at)].size() > 1) metrics[key] = sum.first / sum.second;
  }
}

}  // namespace weft::study
