// Checkpoint folders: <folder>/step-00001000/ with manifest, model.safetensors, optimizer-0000-of-0001.safetensors,
// state, config.txtpb; <folder>/latest names the newest.
//   io::save_checkpoint("run/checkpoints", {.step = 1000, .tokens = n, .model = weights, .optimizer = moments, ...});
//   std::vector<std::string> messages;
//   auto checkpoint = io::load_latest_checkpoint("run/checkpoints", messages);    // nullopt: none was written
// A checkpoint is written aside, synced and renamed: a process that dies at any moment leaves the old ones whole.
// Loading verifies sizes and checksums. One process writes to a folder at a time.
#pragma once

#include <cstdint>
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

// What is saved. `state` is the trainer's own record (schedule, data cursor, random state), opaque here.
struct CheckpointData {
  int64_t step = 0;
  int64_t tokens = 0;
  std::vector<MeshAxis> mesh = {{"data", 1}};
  std::vector<NamedTensor> model = {}, optimizer = {};
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

// Writes the checkpoint and then `latest`; replaces one of the same step. Returns its folder. On failure (disk full,
// folder not writable) throws one Error, removes what it wrote and leaves all older checkpoints as they are.
std::string save_checkpoint(const std::string& folder, const CheckpointData& data);

// Reads and checks the manifest only. Error if there is none or it is damaged: then the folder is no checkpoint.
CheckpointInfo read_checkpoint_info(const std::string& path);

// Verifies every size and checksum of one checkpoint folder. The Error names the file and the first damaged tensor.
Checkpoint load_checkpoint(const std::string& path);

// The checkpoint that `latest` names; if that is missing or damaged, the next older good one, then younger ones, and
// `messages` says which were passed over and why. nullopt if the folder holds no checkpoint; Error if it holds some and
// none is good.
std::optional<Checkpoint> load_latest_checkpoint(const std::string& folder, std::vector<std::string>& messages);
std::optional<std::string> find_latest_checkpoint(const std::string& folder, std::vector<std::string>& messages);

// The newest checkpoint whose numbers are all finite, by the manifests alone.
std::optional<int64_t> last_finite_checkpoint(const std::string& folder);

// For a run that goes on from `step`: makes `latest` name the checkpoint of that step, if there is one, and moves the ones of later
// steps into <folder>/set-aside/, so that nothing falls back on them. Returns their new folders. Killed between, it leaves
// `latest` as the decision, and the next call moves the rest.
std::vector<std::string> set_aside_checkpoints(const std::string& folder, int64_t step);
// The same for all checkpoints but that of `step`, which may be absent.
std::vector<std::string> set_aside_other_checkpoints(const std::string& folder, int64_t step);

std::vector<int64_t> list_checkpoints(const std::string& folder);      // steps, ascending; empty if there is no folder
std::string checkpoint_path(const std::string& folder, int64_t step);  // folder + "/step-00001000"

// What prune_checkpoints() keeps. The checkpoint that `latest` names is always kept and counts as the last, and so is the newest one
// whose numbers are all finite.
struct Retention {
  int keep_last = 3;
  int64_t keep_every = 0;  // also all steps divisible by this; 0: none
  bool keeps_best = true;
  int64_t best_step = -1;  // with keeps_best also this step, if it is 0 or more
};

// Removes other checkpoints and left-over partial folders. Steps beyond `latest`, which a run leaves that went back to
// an older checkpoint, are kept until they are written again. Returns the steps removed.
std::vector<int64_t> prune_checkpoints(const std::string& folder, const Retention& retention);
// The left-over partial files and folders alone: what a killed process was writing or removing.
void remove_partial_checkpoints(const std::string& folder);

}  // namespace weft::io
