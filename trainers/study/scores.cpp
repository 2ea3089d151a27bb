#include "trainers/study/scores.h"

#include <fmt/format.h>

#include <algorithm>
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

// What no evaluation says of the rows of a task, or "". The report makes an item of every target, and looks up the hits of every row.
std::string fault_of(const Scores::Task& score) {
  constexpr int64_t kMostTargets = int64_t{1} << 27;  // 2 GiB in the report
  if (score.length < 1 || score.length > kMostLength) return str(score.name, " has rows of ", score.length, " tokens");
  int64_t sum = 0;
  if (score.hits.size() != score.targets.size())
    return str(score.name, " has the hits of ", score.hits.size(), " rows and the targets of ", score.targets.size());
  for (size_t row = 0; row < score.targets.size(); ++row)
    if (score.hits[row] < 0 || score.hits[row] > score.targets[row] || score.targets[row] > score.length)
      return str("row ", row, " of ", score.name, " has ", score.hits[row], " hits of ", score.targets[row],
                 " targets in ", score.length, " tokens");
    else if ((sum += score.targets[row]) > kMostTargets)
      return str(score.name, " has more than ", kMostTargets, " targets");
  return {};
}

Scores::Task task_of(const Json& row) {
  Scores::Task score{.name = row.at("task").get<std::string>(),
                     .length = row.at("length").get<int64_t>(),
                     .rows = row.value("rows", int64_t{0}),
                     .accuracy = number_of(row, "accuracy"),
                     .loss = number_of(row, "loss")};
  if (row.contains("row_hits")) {
    score.hits = row["row_hits"].get<std::vector<int64_t>>();
    score.targets = row.at("row_targets").get<std::vector<int64_t>>();
  }
  // A task of several sizes has its size behind the length.
  if (row.size() > 2)
    if (const auto third = std::next(row.begin(), 2); third.key() != "rows")
      score.size = fmt::format("{} {}", third.value().get<int64_t>(), third.key());
  if (row.contains("groups"))
    for (const Json& group : row["groups"])
      score.groups.emplace_back(group.at("group").get<std::string>(), number_of(group, "accuracy"));
  return score;
}

// The tasks that each metric is the mean over.
std::map<std::string, std::vector<const Scores::Task*>> tasks_of_metrics(const Scores& scores) {
  std::map<std::string, std::vector<const Scores::Task*>> tasks;
  std::map<std::string, std::set<int64_t>> lengths;
  for (const Scores::Task& task : scores.tasks) {
    const std::string name = str("task/", task.name, "/accuracy");
    lengths[name].insert(task.length);
    tasks[name].push_back(&task);
    tasks[str(name, "@", task.length)].push_back(&task);
    if (!task.size.empty()) tasks[str(name, "/", task.size.substr(0, task.size.find(' ')))].push_back(&task);
  }
  std::erase_if(tasks, [&](const auto& entry) {
    const size_t at = entry.first.find('@');
    return at != std::string::npos && lengths[entry.first.substr(0, at)].size() < 2;
  });
  return tasks;
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

Scores scores_of(const std::vector<std::string>& answers, const std::string& run) {
  constexpr const char* kFix = "remove the run's result, and it is evaluated again";
  Scores scores;
  for (const std::string& answer : answers) try {
      const Json in = Json::parse(answer);
      if (in.contains("validation"))
        for (const Json& row : in["validation"]) scores.lengths.push_back(length_of(row));
      else
        for (const Json& row : in.at("tasks")) scores.tasks.push_back(task_of(row));
    } catch (const Json::exception& e) { fail(str("scores of ", run, ": ", std::string_view(e.what())), kFix); }
  for (const Scores::Task& task : scores.tasks)
    if (const std::string fault = fault_of(task); !fault.empty()) fail(str("scores of ", run, ": ", fault), kFix);
  return scores;
}

void add_metrics(const Scores& scores, std::map<std::string, double>& metrics) {
  for (const Scores::Length& length : scores.lengths) metrics[str("val/loss@", length.length)] = length.loss;
  for (const auto& [key, tasks] : tasks_of_metrics(scores)) {
    double sum = 0;
    for (const Scores::Task* task : tasks) sum += task->accuracy;
    metrics[key] = sum / static_cast<double>(tasks.size());
  }
}

std::map<std::string, std::vector<std::string>> questions_of(const Scores& scores) {
  std::map<std::string, std::vector<std::string>> questions;
  for (const auto& [key, tasks] : tasks_of_metrics(scores)) {
    for (const Scores::Task* task : tasks)
      questions[key].push_back(
          fmt::format("{} tokens, {}{} rows", task->length, task->size.empty() ? "" : task->size + ", ", task->rows));
    std::ranges::sort(questions[key]);
  }
  return questions;
}

}  // namespace weft::study
