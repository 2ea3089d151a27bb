// A study's grid: every arm of every axis with every other, each with every seed. A cell is one run.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "trainers/config/config.h"
#include "trainers/study/claim.h"
#include "trainers/study/scores.h"

namespace weft::study {

struct GridArm {
  std::string name;
  std::vector<std::string> set;  // overrides of the base config
};
struct GridAxis {
  std::string name;
  std::vector<GridArm> arms;
};
struct Match {
  enum class What { parameters, flops } what = What::parameters;
  bool changes_tokens = false;  // and not the width of the feed-forward network
  double tolerance = 0.01;      // relative
  int64_t multiple = 8;         // of which the width is one
};
// What is tuned for each arm before the comparison.
struct Tune {
  std::string path, metric = "val/loss";
  std::vector<std::string> values = {};  // numbers, ascending
  std::vector<int64_t> seeds = {};
  int64_t widen = 2;
  std::vector<std::string> set = {};
};

struct Grid {
  std::string file = {}, text = {};  // where it stands, and all of it
  std::string name = {}, base = {};
  std::vector<int64_t> seeds = {};
  std::vector<GridAxis> axes = {};
  std::vector<std::string> set = {};
  std::vector<size_t> baseline = {};  // an arm of each axis
  std::vector<std::string> metrics = {};
  double confidence = 0.95, effect = 0;  // effect: the smallest difference worth finding, or 0
  std::optional<Match> match = {};
  std::optional<Tune> tune = {};
  Evals evals = {};
  int64_t threads = 1;
  bool keeps_optimizer = false;
  std::vector<Claim> claims = {};
  std::optional<double> minutes = {};  // on one core, about
};
// ConfigError with file, line and the word at fault. Relative paths in its overrides are relative to its folder. `study_of`: of a file in the
// folder of a study, where overrides may stand behind the text; the folder of the grid that it was made of.
Grid read_grid(const std::string& file, const std::optional<std::string>& study_of = {});
// An override for all runs, given on the command line: it is part of the study, and stands behind the grid's text, below a mark. Its relative
// paths are relative to the working directory.
void add_override(Grid& grid, const std::string& override);
std::vector<std::string> overrides_in(const std::string& text);  // those that were added so
// "gate=none,lr=1e-3" of the arms that a text of this form names; of axes that it leaves out, the first arm. `what` is said in errors.
std::string full_name(const Grid& grid, const std::string& what, const std::string& text);

// One arm of each axis: what the report has a row for.
struct Combination {
  std::vector<size_t> arms;
  std::string name;                    // "gate=head,lr=3e-4"
  std::vector<std::string> overrides;  // without the seed
  std::string base = {};               // config that it begins with, if not the grid's
  config::Experiment experiment = {};  // resolved, of the first seed
  int64_t params = 0;                  // without embeddings
  int64_t idle_params = 0;             // of them, those that LanguageModel::num_active_params() leaves out
  int64_t matched_ffn = 0;             // width that match set, or 0
  std::optional<double> off_by = {};   // of what match made equal: this arm over the baseline, minus 1
  double flops_per_token = 0;          // without the output head
  std::string tuned = {};              // the value of Tune::path
};
// All of them, the baseline's place in `baseline`. Resolves every config, so that a fault in any is found before anything runs, and refuses arms
// that see other batches. What a config alone does not say is looked at by check_arms().
struct Arms {
  std::vector<Combination> all;
  size_t baseline = 0;
};
Arms resolve_arms(const Grid& grid, const cli::Extensions& own);

struct Cell {
  size_t combination = 0;
  int64_t seed = 0;
  std::string folder;      // name of its run folder: arms, seed, and the first digits of the checksum of its config
  std::string meant = {};  // the name by its own config, if `folder` was found with other paths or defaults
  config::Experiment experiment = {};  // resolved, of its seed
  std::vector<std::string> overrides = {};
  std::string run = {};           // where the run is, if not in the study's folder
  int64_t ranks = 1;              // that train it together, as threads of one process
  int64_t steps = 1, tokens = 0;  // of its training; a try may have fewer than the runs of its arm
};
std::vector<Cell> cells_of(const Grid& grid, const Arms& arms);
// One cell. `name` stands before the seed in the name of its folder; `experiment` is its config with any seed.
Cell cell_of(size_t combination, const std::string& name, int64_t seed, config::Experiment experiment,
             std::vector<std::string> overrides);

// The config of an arm with these overrides behind its own.
config::Loaded config_of(const Grid& grid, const Combination& arm, const std::vector<std::string>& more,
                         const cli::Extensions& own);
int64_t ranks_of(const config::Experiment& e);
// "data.train.path is a.txt in one and b.txt in the other", or "" where runs of a seed see the same batches.
std::string other_batches(const config::Experiment& a, const config::Experiment& b);

}  // namespace weft::study
