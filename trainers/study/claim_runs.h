// What a study's folder says about the claims of its grid: read from the report that `weft ablate` left there. The numbers that decide are
// few, so they can be kept as a small file, from which the page can be made when the folder is gone.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "trainers/study/grid.h"

namespace weft::study {

struct ClaimRuns {
  enum class State { not_run, unfinished, complete };
  State state = State::not_run;
  int64_t num_complete = 0, num_runs = 0;
  std::vector<std::string> lost = {};      // "gate=head,seed=1-5f1c93a0: diverged: ..."
  std::vector<std::string> set = {};       // overrides of the command line; files without their folders
  std::vector<std::string> machines = {};  // that the runs were made on
  int64_t num_builds = 0;                  // of Weft, that made them
  double training_s = 0;                   // of all runs
  struct Arm {
    int64_t params = 0, tokens = 0;                          // without embeddings; of a run
    std::map<std::string, std::vector<double>> values = {};  // by metric, of each seed; NaN where a run has none
  };
  std::map<std::string, Arm> arms = {};
};
// Of the folder of this grid's study, which may be missing. Error with the file if it holds the study of another grid, or with other rules.
ClaimRuns read_claim_runs(const Grid& grid, const std::string& folder);

// A complete study as JSON: its grid, and a number per seed for each arm and metric of a claim.
std::string claim_record(const Grid& grid, const ClaimRuns& runs);
// Of such a file. Error as above.
ClaimRuns read_claim_record(const Grid& grid, const std::string& file);

}  // namespace weft::study
