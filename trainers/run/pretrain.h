// `weft train`: from a config to a trained model in a run folder.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "weft/trainers/cli.h"

namespace weft::cli {
class Console;
}

namespace weft::train {

struct PretrainArguments {
  std::string config_file;
  std::vector<std::string> overrides;
  std::string run_folder;  // empty: runs/<name>
  std::string resume =
      "auto";  // auto: continue what the folder holds; never: Error if it holds a checkpoint; or one as in trainers/run/address.h
  cli::Extensions own = {};  // the program's parts
  // Threads of this process: as many as parallel.data x parallel.context. Not said: one, or the processes of a launcher.
  std::optional<int> ranks = {};
};

// Exit code: success, or stopped and resumable (SIGTERM, SIGINT, train.max_seconds).
int pretrain(cli::Console& console, const PretrainArguments& arguments);

}  // namespace weft::train
