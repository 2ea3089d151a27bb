// Recall, recall by difficulty, loss by length and by position: what `weft eval` said of the runs of each arm.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "trainers/study/report_parts.h"
#include "weft/trainers/statistics.h"

namespace weft::study {

namespace {

using Json = nlohmann::ordered_json;

// Scores of the complete runs of each arm, by seed.
using ScoresOfArms = std::vector<std::map<int64_t, Scores>>;

ScoresOfArms scores_of_arms(const StudyData& data) {
  ScoresOfArms all(data.arms.all.size());
  for (size_t i = 0; i < data.cells.size(); ++i)
    if (data.results[i] && data.results[i]->state == CellResult::State::complete && !data.results[i]->answers.empty())
      all[data.cells[i].combination][data.cells[i].seed] = scores_of(data.results[i]->answers, data.cells[i].folder);
  return all;
}

// One task, length and size: all runs have the same test rows.
struct Question {
  std::string name, size;
  int64_t length = 0;
  bool operator==(const Question&) const = default;
  std::string text() const { return fmt::format("{} of {} tokens{}", name, length, size.empty() ? "" : ", " + size); }
};

std::vector<Question> questions_of(const ScoresOfArms& all) {
  std::vector<Question> questions;
  for (const auto& seeds : all)
    for (const auto& [seed, scores] : seeds)
      for (const Scores::Task& task : scores.tasks)
        if (const Question q{task.name, task.size, task.length}; std::ranges::find(questions, q) == questions.end())
          questions.push_back(q);
  return questions;
}

const Scores::Task* find(const Scores& scores, const Question& q) {
  for (const Scores::Task& task : scores.tasks)
    if (Question{task.name, task.size, task.length} == q) return &task;
  return nullptr;
}

// Items of all seeds; a cluster is a test row. Only the sums of a row count for the interval, so that it does not matter which of its items
// was a hit.
struct Items {
  std::vector<double> scores;
  std::vector<int64_t> rows;
};

Items items_of(const std::map<int64_t, Scores>& seeds, const Question& q) {
  Items items;
  for (const auto& [seed, scores] : seeds)
    if (const Scores::Task* task = find(scores, q))
      for (size_t row = 0; row < task->targets.size(); ++row)
        for (int64_t i = 0; i < task->targets[row]; ++i)
          items.scores.push_back(i < task->hits[row] ? 1 : 0), items.rows.push_back(static_cast<int64_t>(row));
  return items;
}

// Arm minus baseline, of the seeds that both have.
Items differences_of(const std::map<int64_t, Scores>& arm, const std::map<int64_t, Scores>& baseline,
                     const Question& q) {
  Items items;
  for (const auto& [seed, scores] : arm) {
    const auto other = baseline.find(seed);
    const Scores::Task *a = find(scores, q), *b = other == baseline.end() ? nullptr : find(other->second, q);
    if (!a || !b || a->targets != b->targets) continue;
    for (size_t row = 0; row < a->targets.size(); ++row)
      for (int64_t i = 0; i < a->targets[row]; ++i) {
        items.scores.push_back((i < a->hits[row] ? 1.0 : 0.0) - (i < b->hits[row] ? 1.0 : 0.0));
        items.rows.push_back(static_cast<int64_t>(row));
      }
  }
  return items;
}

std::string interval_text(const std::optional<Interval>& interval, bool is_signed) {
  if (!interval) return "-";
  return is_signed ? fmt::format("[{:+.4f}, {:+.4f}]", interval->low, interval->high)
                   : fmt::format("[{:.4f}, {:.4f}]", interval->low, interval->high);
}

ReportPart recall_part(const StudyData& data, const ScoresOfArms& all, const std::vector<Question>& questions) {
  ReportPart part{
      .key = "recall",
      .section = {
          .heading = "Recall",
          .text =
              "Accuracy over all seeds. Intervals are clustered by test row: they say what other rows would change, "
              "and the tables above what other seeds would."}};
  Json json = Json::array();
  const StatisticsOptions options{.confidence = data.grid.confidence};
  for (const Question& q : questions) {
    io::ReportTable table{
        .title = q.text(), .header = {"arm", "accuracy", "interval", "difference", "interval"}, .rows = {}};
    Json arms = Json::array();
    for (size_t a = 0; a < all.size(); ++a) {
      const Items items = items_of(all[a], q);
      if (items.scores.empty()) continue;
      const ClusteredMean mean = clustered_mean(items.scores, items.rows, options);
      std::vector<std::string> row{data.arms.all[a].name, fmt::format("{:.4f}", mean.mean),
                                   interval_text(mean.t_interval, false), "-", "-"};
      Json out{{"arm", data.arms.all[a].name}, {"accuracy", mean.mean}, {"rows", mean.clusters}};
      if (mean.t_interval) out["interval"] = Json::array({mean.t_interval->low, mean.t_interval->high});
      const Items differences = differences_of(all[a], all[data.arms.baseline], q);
      if (a != data.arms.baseline && !differences.scores.empty()) {
        const ClusteredMean d = clustered_mean(differences.scores, differences.rows, options);
        row[3] = fmt::format("{:+.4f}", d.mean), row[4] = interval_text(d.t_interval, true);
        out["difference"] = d.mean;
        if (d.t_interval) out["difference_interval"] = Json::array({d.t_interval->low, d.t_interval->high});
      }
      table.rows.push_back(std::move(row));
      arms.push_back(std::move(out));
    }
    part.section.tables.push_back(std::move(table));
    json.push_back({{"task", q.name}, {"length", q.length}, {"size", q.size}, {"arms", arms}});
  }
  part.json = json.dump(-1, ' ', false, Json::error_handler_t::replace);
  return part;
}

// Arms down, groups of a task across, as means over the seeds.
ReportPart difficulty_part(const StudyData& data, const ScoresOfArms& all, const std::vector<Question>& questions) {
  ReportPart part{.key = "recall_by_difficulty",
                  .section = {.heading = "Recall by difficulty",
                              .text = "Accuracy by what a question asks, means over the seeds."}};
  Json json = Json::array();
  for (const Question& q : questions) {
    std::vector<std::string> groups;
    std::vector<std::map<std::string, SpreadPoint>> arms(all.size());
    for (size_t a = 0; a < all.size(); ++a)
      for (const auto& [seed, scores] : all[a])
        if (const Scores::Task* task = find(scores, q))
          for (const auto& [name, accuracy] : task->groups) {
            if (std::ranges::find(groups, name) == groups.end()) groups.push_back(name);
            arms[a][name].add(accuracy);
          }
    if (groups.size() < 2) continue;
    io::ReportTable table{.title = q.text(), .header = {"arm"}, .rows = {}};
    io::Plot plot{
        .title = q.text() + ", by difficulty", .x_label = "group, from the left of the table", .y_label = "accuracy"};
    table.header.insert(table.header.end(), groups.begin(), groups.end());
    Json rows = Json::array();
    for (size_t a = 0; a < all.size(); ++a) {
      std::vector<std::string> row{data.arms.all[a].name};
      std::vector<std::pair<double, SpreadPoint>> points;
      Json values = Json::object();
      for (size_t g = 0; g < groups.size(); ++g) {
        const SpreadPoint& point = arms[a][groups[g]];
        const double mean = point.sum / static_cast<double>(point.count);
        row.push_back(point.count > 0 ? fmt::format("{:.4f}", mean) : "-");
        points.emplace_back(static_cast<double>(g), point);
        if (point.count > 0) values[groups[g]] = mean;
      }
      table.rows.push_back(std::move(row));
      if (io::PlotSeries series = series_of(data, a, points); !series.points.empty())
        plot.series.push_back(std::move(series));
      rows.push_back({{"arm", data.arms.all[a].name}, {"accuracy", values}});
    }
    part.section.tables.push_back(std::move(table));
    part.section.pictures.push_back(std::move(plot));
    json.push_back({{"task", q.name}, {"length", q.length}, {"size", q.size}, {"arms", rows}});
  }
  part.json = json.dump(-1, ' ', false, Json::error_handler_t::replace);
  return part;
}

// A loss against something that doubles. `key_of` names the column of each point.
struct Curves {
  std::map<int64_t, std::string> columns;            // by where they begin
  std::vector<std::map<int64_t, SpreadPoint>> arms;  // [arm]
};

// x is the logarithm of a column's number and `more`.
ReportPart curves_part(const StudyData& data, const Curves& curves, ReportPart part, int64_t more,
                       const std::string& x_label) {
  io::ReportTable table{.title = "nats per token", .header = {"arm"}, .rows = {}};
  io::Plot plot{.title = part.section.heading, .x_label = x_label, .y_label = "nats per token"};
  for (const auto& [from, name] : curves.columns) table.header.push_back(name);
  Json json = Json::array();
  for (size_t a = 0; a < curves.arms.size(); ++a) {
    std::vector<std::string> row{data.arms.all[a].name};
    std::vector<std::pair<double, SpreadPoint>> points;
    Json losses = Json::array();
    for (const auto& [from, name] : curves.columns) {
      const auto at = curves.arms[a].find(from);
      const bool is_there = at != curves.arms[a].end() && at->second.count > 0;
      const double mean = is_there ? at->second.sum / static_cast<double>(at->second.count) : 0;
      row.push_back(is_there ? fmt::format("{:.4f}", mean) : "-");
      if (is_there) points.emplace_back(std::log2(static_cast<double>(from + more)), at->second);
      losses.push_back({{"tokens", name}, {"loss", is_there ? Json(mean) : Json(nullptr)}});
    }
    table.rows.push_back(std::move(row));
    if (!points.empty()) plot.series.push_back(series_of(data, a, points));
    json.push_back({{"arm", data.arms.all[a].name}, {"losses", losses}});
  }
  part.section.tables.push_back(std::move(table));
  if (!plot.series.empty()) part.section.pictures.push_back(std::move(plot));
  part.json = json.dump(-1, ' ', false, Json::error_handler_t::replace);
  return part;
}

}  // namespace

std::vector<ReportPart> score_parts(const StudyData& data) {
  const ScoresOfArms all = scores_of_arms(data);
  std::vector<ReportPart> parts;
  if (const std::vector<Question> questions = questions_of(all); !questions.empty()) {
    parts.push_back(recall_part(data, all, questions));
    parts.push_back(difficulty_part(data, all, questions));
    if (parts.back().section.tables.empty()) parts.pop_back();
  }
  Curves lengths{.columns = {}, .arms = std::vector<std::map<int64_t, SpreadPoint>>(all.size())}, positions = lengths;
  int64_t longest = 0;  // positions are shown of the longest rows
  for (const auto& seeds : all)
    for (const auto& [seed, scores] : seeds)
      for (const Scores::Length& length : scores.lengths) longest = std::max(longest, length.length);
  for (size_t a = 0; a < all.size(); ++a)
    for (const auto& [seed, scores] : all[a])
      for (const Scores::Length& length : scores.lengths) {
        lengths.columns[length.length] = str(length.length);
        lengths.arms[a][length.length].add(length.loss);
        for (const Scores::Position& p : length.positions) {
          if (length.length != longest) continue;
          positions.columns[p.from] = p.from == p.to ? str(p.from) : str(p.from, "-", p.to);
          positions.arms[a][p.from].add(p.loss);
        }
      }
  if (lengths.columns.size() > 1)
    parts.push_back(curves_part(
        data, lengths,
        {.key = "lengths",
         .section = {.heading = "Loss by length of the rows",
                     .text = str("Validation in rows of these lengths; the runs were trained with ",
                                 data.arms.all[data.arms.baseline].experiment.model().context(), " tokens.")}},
        0, "log2 of the tokens of a row"));
  if (!positions.columns.empty())
    parts.push_back(curves_part(
        data, positions,
        {.key = "positions",
         .section = {.heading = "Loss by position",
                     .text =
                         str("By how many tokens of its row the model had seen, in rows of ", longest, " tokens.")}},
        1, "log2 of the tokens seen, and one"));
  return parts;
}

}  // namespace weft::study
