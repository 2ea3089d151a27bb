#include "trainers/study/cell_table.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "trainers/console/progress.h"
#include "trainers/study/cells.h"
#include "weft/io/files.h"

namespace weft::study {

namespace {

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

}  // namespace

CellTable::CellTable(std::string study_folder, const Arms& arms, const std::vector<Cell>& cells,
                     const std::vector<size_t>& open)
    : study_folder_(std::move(study_folder)), arms_(arms), cells_(cells), num_done_(cells.size() - open.size()) {
  for (size_t cell : open) open_work_ += work_[cell] = work_of(cell);
}

// Steps that are taken already cost nothing more. What comes behind the last step, such as evaluations, counts as one of a hundred parts.
double CellTable::work_of(size_t cell) const {
  constexpr double kBehind = 0.01;
  const Cell& run = cells_[cell];
  const double taken = static_cast<double>(progress_of(cell).step) / static_cast<double>(run.steps);
  return arms_.all[run.combination].flops_per_token * static_cast<double>(run.tokens) *
         (kBehind + std::clamp(1 - taken, 0.0, 1.0));
}

// From the last whole line of its metrics that has a training loss. The run writes while this reads.
CellTable::Progress CellTable::progress_of(size_t cell) const {
  const std::string file = run_folder(study_folder_, cells_[cell]) + "/metrics.jsonl";
  if (!io::file_exists(file)) return {};
  const std::string text = io::read_file(file);
  for (size_t end = text.rfind('\n'); end != std::string::npos && end > 0; end = text.rfind('\n', end - 1)) {
    const size_t before = text.rfind('\n', end - 1), begin = before == std::string::npos ? 0 : before + 1;
    const auto line = nlohmann::json::parse(text.substr(begin, end - begin), nullptr, false);
    if (line.is_object() && line.contains("train/loss") && line["train/loss"].is_number())
      return {.step = line.value("step", int64_t{0}), .loss = line["train/loss"].get<double>()};
  }
  return {};
}

void CellTable::begin(size_t cell) { working_[cell] = {.begin = Clock::now(), .first_step = progress_of(cell).step}; }

std::string CellTable::end(size_t cell, const std::string& outcome) {
  const double took_s = seconds_since(working_[cell].begin);
  working_.erase(cell);
  done_work_ += work_.at(cell);
  ++num_done_;
  return fmt::format("{}/{} {} {}, {}, about {} left", num_done_, cells_.size(), cells_[cell].folder, outcome,
                     cli::duration_text(took_s), cli::duration_text(std::max(0.0, seconds_left())));
}

double CellTable::seconds_left() const {
  double done = done_work_;
  for (const auto& [cell, working] : working_) {
    const int64_t steps = cells_[cell].steps - working.first_step, taken = progress_of(cell).step - working.first_step;
    if (steps > 0)
      done += work_.at(cell) * std::clamp(static_cast<double>(taken) / static_cast<double>(steps), 0.0, 1.0);
  }
  if (done <= 0) return -1;
  return seconds_since(begin_) / done * std::max(0.0, open_work_ - done);
}

std::vector<std::string> CellTable::lines() const {
  std::vector<std::string> lines;
  for (const auto& [cell, working] : working_) {
    const Progress progress = progress_of(cell);
    lines.push_back(fmt::format("{:<44} {:>6}/{:<6} {:>3.0f}%  {}  {}", cells_[cell].folder, progress.step,
                                cells_[cell].steps,
                                100.0 * static_cast<double>(progress.step) / static_cast<double>(cells_[cell].steps),
                                progress.step > 0 ? fmt::format("loss {:.4f}", progress.loss) : "starting   ",
                                cli::duration_text(seconds_since(working.begin))));
  }
  const double left_s = seconds_left();
  lines.push_back(fmt::format("{} of {} runs done{}", num_done_, cells_.size(),
                              left_s < 0 ? "" : fmt::format(", about {} left", cli::duration_text(left_s))));
  return lines;
}

}  // namespace weft::study
