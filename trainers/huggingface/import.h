// A Hugging Face folder becomes a run folder: config.txtpb, a checkpoint of step 0, and the tokenizer.
#pragma once

#include <string>
#include <vector>

#include "weft/io/safetensors.h"
#include "weft/trainers/cli.h"

namespace weft::huggingface {

struct ImportOptions {
  std::string folder, run;
  std::vector<std::string> overrides = {};  // of the run's config
  bool is_partial = false;                  // takes what fits; without it, what does not fit is an Error
  cli::Extensions own = {};
};

struct Imported {
  std::string family = {}, tokenizer = {}, checkpoint = {};
  int64_t num_params = 0;
  io::LoadReport report = {};
  std::vector<std::string> notes = {};  // what was not taken of config.json and tokenizer.json
};

// Error before anything is written if the folder is damaged, if its model is none that Weft has, or if `run` holds a run.
Imported import_folder(const ImportOptions& options);

struct ExportOptions {
  std::string run;  // as in trainers/run/address.h
  std::string folder;
  bool is_bf16 = false;  // weights are rounded; otherwise f32
  bool merges_adapters =
      false;  // adds each low-rank adapter to the matrix beside it; without it, a model with adapters is an Error
  uint64_t max_shard_bytes = 0;  // of tensors in one file; 0: one file
};

struct Exported {
  std::string family = {};
  int64_t num_tensors = 0, num_merged = 0;  // adapters
  uint64_t bytes = 0;
  std::vector<std::string> notes = {};
};

// config.json, model.safetensors or shards with an index, and tokenizer.json where the run has one. The folder must be absent or empty; it
// is there when all of it is written. ConfigError that names what of the model has no form there.
Exported export_run(const ExportOptions& options);

}  // namespace weft::huggingface
