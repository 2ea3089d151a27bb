// A study's grid: every arm of every axis with every other, each with every seed. A cell is one run.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "trainers/config/config.h"

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
  double parameters = 0.01;
  int64_t multiple = 8;
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
  int64_t threads = 1;
};
// ConfigError with file, line and the word at fault.
Grid read_grid(const std::string& file);

// One arm of each axis: what the report has a row for.
struct Combination {
  std::vector<size_t> arms;
  std::string name;                     // "gate=head,lr=3e-4"
  std::vector<std::string> overrides;   // without the seed
  config::Experiment experiment = {};   // resolved, of the first seed
  int64_t params = 0, matched_ffn = 0;  // without embeddings; width that match set, or 0
  double flops_per_token = 0;
};
// All of them, the baseline's place in `baseline`. Resolves every config, so that a fault in any arm is found before anything runs, and
// refuses arms that see other batches.
struct Arms {
  std::vector<Combination> all;
  size_t baseline = 0;
};
Arms resolve_arms(const Grid& grid, const cli::Extensions& own);

struct Cell {
  size_t combination = 0;
  int64_t seed = 0;
  std::string folder;  // name of its run folder: arms, seed, and the first digits of the checksum of its config
  std::vector<std::string> overrides;
};
std::vector<Cell> cells_of(const Grid& grid, const Arms& arms);

}  // namespace weft::study
