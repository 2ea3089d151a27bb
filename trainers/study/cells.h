// The runs of a study: each is a `weft train` of its own, in a process of its own.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "trainers/study/grid.h"

namespace weft::study {

// What a cell came to; a small JSON file in the study's folder, so that a finished cell is never run again. A failed one is.
struct CellResult {
  enum class State { complete, diverged, failed };
  State state = State::failed;
  std::string problem = {};  // of one that failed: its last message
  // The last value of every key of metrics.jsonl; of speed/tokens_per_second the median; beside them first_token_mass, the mean over layers
  // and heads where diagnostics have it, and what add_metrics() adds.
  std::map<std::string, double> metrics = {};
  std::vector<std::string> answers = {};  // of eval_calls(), for scores_of()
};
std::string_view to_string(CellResult::State state);

struct CellRuns {
  std::string program;  // of this process, with its extensions
  std::string folder;   // of the study
  int jobs = 1;         // cells at a time
  std::vector<std::string> gpus =
      {};  // CUDA_VISIBLE_DEVICES of the first job, of the second, ..., and from the first on again; none: as it is
  std::string metric = "val/loss";  // said of each run
  Evals evals = {};
  bool notes_hparams = true;  // for TensorBoard
  bool runs_nothing = false;  // of tune_arms(): what is stored is all there is
  std::function<bool()> is_stopping = {};
  std::function<void(std::string_view)> say = {};           // a line per finished run
  std::function<void(std::vector<std::string>)> show = {};  // what runs at present, several times a second
};
// Runs the cells that have no result yet and returns the results of all, in the order of `cells`; those of a study that was stopped are
// missing. Complete ones whose `evals` are others are evaluated again. A cell whose training fails is started once more and goes on from its last
// checkpoint, but for exit codes that would come again: refused (2) and diverged (5). An evaluation that fails is not.
// In each run's folder, and in the study's, stands what TensorBoard's view HParams shows.
std::vector<std::optional<CellResult>> run_cells(const Grid& grid, const Arms& arms, const std::vector<Cell>& cells,
                                                 const CellRuns& how);

std::optional<CellResult> stored_result(const std::string& study_folder, const Cell& cell);
// The results that a study's folder holds, read without training. Paths of overrides, or fields of a younger version, may have given a config
// another checksum: if the config in the run's folder is the cell's but for those, the cell takes the name that is there, and Cell::meant is
// its own. ConfigError if several results are such.
std::vector<std::optional<CellResult>> found_results(const std::string& study_folder, std::vector<Cell>& cells);
// Gives cells the names of such results that are complete, so that nothing is trained again for a folder that was moved.
void take_over_complete(const std::string& study_folder, std::vector<Cell>& cells);
std::string run_folder(const std::string& study_folder, const Cell& cell);
// ConfigError if complete runs have read files of other contents, whatever their paths: runs of a seed would not be pairs.
void require_same_contents(const std::string& study_folder, const std::vector<Cell>& cells,
                           const std::vector<std::optional<CellResult>>& results);
// Of a finished run. A loss that is not finite at the end has diverged, whatever the process said.
CellResult read_run(const std::string& folder);

}  // namespace weft::study
