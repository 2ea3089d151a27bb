// Checkpoint folders: <folder>/step-00001000/ with manifest, model.safetensors, optimizer-0000-of-0001.safetensors,
// state, config.txtpb; <folder>/latest names the newest.
//   io::save_checkpoint("run/checkpoints", {.step = 1000, .tokens = n, .model = weights, .optimizer = moments, ...});
//   std::vector<std::string> messages;
//   auto checkpoint = io::load_latest_checkpoint("run/checkpoints", messages);    // nullopt: none was written
// A checkpoint is written to a temporary folder, synced and renamed. A process that dies at any moment leaves the old checkpoints whole.
// Loading verifies sizes and checksums. One process writes to a folder at a time.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "weft/io/safetensors.h"

namespace weft::io {

inline constexpr int kCheckpointFormatVersion = 1;

struct MeshAxis {
  std::string name;
  int64_t size = 1;
};

// What is saved. `state` is the trainer's own record (schedule, data cursor, random state); this file does not look into it.
struct CheckpointData {
  int64_t step = 0;
  int64_t tokens = 0;
  std::vector<MeshAxis> mesh = {{"data", 1}};
  std::vector<NamedTensor> model = {}, optimizer = {};
  std::function<Tensor(const std::string& name)> optimizer_elements = {};  // of SafetensorsOptions
  std::string state = {};
  std::string config = {};  // text of config.txtpb
};

// The manifest, for loading and inspection.
struct CheckpointInfo {
  struct File {
    std::string name;
    FileDigest digest;
  };
  struct StoredTensor {
    std::string name, file, dtype;
    std::vector<int64_t> shape, shard_begin, shard_end;  // logical sizes; the part in the file, per dimension
    uint64_t offset = 0, size = 0, xxh3 = 0;             // of its bytes in the file
    int64_t num_not_finite = 0;                          // elements that are NaN or infinite
  };

  std::string path;  // of the checkpoint's own folder
  int format_version = 0;
  int64_t step = 0, tokens = 0;
  std::vector<MeshAxis> mesh;
  std::vector<File> files;
  std::vector<StoredTensor> tensors;

  bool is_finite() const;  // no number of weights and optimiser is NaN or infinite
};

struct Checkpoint {
  CheckpointInfo info;
  SafetensorsFile model, optimizer;
  std::string state, config;
};

// Writes the checkpoint and then `latest`. A checkpoint of the same step is replaced. Returns the folder. If that fails (disk full, folder
// not writable), it removes what it wrote, leaves all other checkpoints as they are, and throws an Error.
std::string save_checkpoint(const std::string& folder, const CheckpointData& data);

// Reads and checks the manifest only. Error if it is missing or damaged: then the folder is not a checkpoint.
CheckpointInfo read_checkpoint_info(const std::string& path);

// Verifies every size and checksum of one checkpoint folder. The Error names the file and the first damaged tensor.
Checkpoint load_checkpoint(const std::string& path);

// Whether a training can go on from it. Imported weights and finished runs of studies have no optimiser's state.
bool has_optimizer(const CheckpointInfo& info);
// Puts a checkpoint without the optimiser's state in the place of this one. If that fails, it stays as it is, and there is an Error.
void drop_optimizer(const std::string& path);

// The checkpoint that `latest` names. If that is missing or damaged: the newest good one before it, else one after it; `messages` says which
// were not taken and why. nullopt if the folder has no checkpoint. Error if it has checkpoints and none is good.
std::optional<Checkpoint> load_latest_checkpoint(const std::string& folder, std::vector<std::string>& messages);
std::optional<std::string> find_latest_checkpoint(const std::string& folder, std::vector<std::string>& messages);

// The newest checkpoint whose numbers are all finite. Reads the manifests only.
std::optional<int64_t> last_finite_checkpoint(const std::string& folder);

// For a run that continues from `step`. If there is a checkpoint of that step, `latest` names it afterwards. Checkpoints of later steps are
// moved to <folder>/set-aside/, so that no later start loads them. Returns their new folders. `latest` is written first: if the process is
// killed before all are moved, the next call moves the rest.
std::vector<std::string> set_aside_checkpoints(const std::string& folder, int64_t step);
// Moves all checkpoints except that of `step`. There need not be one of `step`.
std::vector<std::string> set_aside_other_checkpoints(const std::string& folder, int64_t step);

std::vector<int64_t> list_checkpoints(const std::string& folder);      // steps, ascending; empty if there is no folder
std::string checkpoint_path(const std::string& folder, int64_t step);  // folder + "/step-00001000"

// What prune_checkpoints() keeps. Two checkpoints are always kept: the one that `latest` names, which counts as the last, and the newest one
// whose numbers are all finite.
struct Retention {
  int keep_last = 3;
  int64_t keep_every = 0;  // also all steps divisible by this; 0: none
  bool keeps_best = true;
  int64_t best_step = -1;  // with keeps_best also this step, if it is 0 or more
};

// Removes all other checkpoints, and partial folders that were left over. Checkpoints of steps after `latest` stay; a run that went back to
// an older checkpoint has them. Returns the steps that were removed.
std::vector<int64_t> prune_checkpoints(const std::string& folder, const Retention& retention);
// Removes only partial files and folders: what a killed process was writing or removing.
void remove_partial_checkpoints(const std::string& folder);

}  // namespace weft::io
