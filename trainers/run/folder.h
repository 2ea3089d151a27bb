// The folder of one run: resolved config, overrides, environment, log, metrics, checkpoints. One process at a time.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "trainers/config/config.h"

namespace weft::train {

class RunFolder {
 public:
  // Makes the folder or opens one with the same config. Error that names the differing fields if it holds another config, that
  // another process holds it, or that it cannot be written. `files`: names and contents of what the config needs: a new folder has them
  // before it has the config.
  RunFolder(std::string path, const config::Experiment& experiment, const std::vector<std::string>& overrides,
            const std::vector<std::pair<std::string, std::string>>& files = {});
  ~RunFolder();
  RunFolder(const RunFolder&) = delete;
  RunFolder& operator=(const RunFolder&) = delete;

  const std::string& path() const { return path_; }
  std::string file(std::string_view name) const { return path_ + "/" + std::string(name); }
  // A run has begun here: there is a checkpoint or a line of metrics. Before that, a config.txtpb that an earlier start left binds
  // nobody: that start may have failed on a wrong path.
  bool existed() const { return existed_; }
  bool has_failed_start() const { return has_failed_start_; }
  void require_present() const;  // Error if somebody removed or moved the folder
  // Gives what an earlier start left under `name` a place in set-aside/; returns it.
  std::string set_aside(const std::string& name) const;
  const std::string& config_text() const { return config_text_; }
  // Of a run that goes on with other sequences at a time, on other data ranks: what changes by it, and what would not. Or "".
  const std::string& remark() const { return remark_; }

  void log(std::string_view line);  // appended to log.txt

 private:
  std::string path_, config_text_, remark_;
  bool existed_ = false, has_failed_start_ = false;
  int folder_ = -1, lock_ = -1, log_ = -1;
};

// Whether a run has left metrics or checkpoints in this folder.
bool has_begun(const std::string& run_folder);

// Fields that may differ between the config of a folder and the one that continues it: they do not change the numbers,
// or only by the order of sums. train.micro_batch may differ too, where parallel.data does.
const std::vector<std::string>& resumable_fields();

}  // namespace weft::train
