// What is shown of a study while it runs: a line per run at work, and the time that all runs will still take.
#pragma once

#include <chrono>
#include <map>
#include <string>
#include <vector>

#include "trainers/study/grid.h"

namespace weft::study {

class CellTable {
 public:
  // `open`: those of `cells` that are to be run; the others are done.
  CellTable(std::string study_folder, const Arms& arms, const std::vector<Cell>& cells,
            const std::vector<size_t>& open);

  void begin(size_t cell);
  // Returns the line that is said of a finished cell: "3/15 gate=head,seed=1-... val/loss 1.2345, 0:01:10, about 0:12:00 left".
  std::string end(size_t cell, const std::string& outcome);
  std::vector<std::string> lines() const;

 private:
  using Clock = std::chrono::steady_clock;
  struct Working {
    Clock::time_point begin;
    int64_t first_step = 0;  // of a run that goes on
  };
  struct Progress {
    int64_t step = 0;
    double loss = 0;
  };
  double work_of(size_t cell) const;  // operations that the run still took when this began
  Progress progress_of(size_t cell) const;
  double seconds_left() const;  // negative: nothing is known yet

  std::string study_folder_;
  const Arms& arms_;
  const std::vector<Cell>& cells_;
  Clock::time_point begin_ = Clock::now();
  std::map<size_t, double> work_;  // of the open cells, as work_of() says
  double open_work_ = 0, done_work_ = 0;
  size_t num_done_ = 0;
  std::map<size_t, Working> working_;
};

}  // namespace weft::study
