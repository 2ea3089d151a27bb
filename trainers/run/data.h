// Tokenizer, training loader and validation windows of a run, made from its config.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "trainers/config/config.h"
#include "trainers/run/data_identity.h"
#include "weft/data/loader.h"
#include "weft/data/recall.h"
#include "weft/data/tokenizer.h"

namespace weft::train {

struct RunData {
  std::shared_ptr<const data::Tokenizer> tokenizer;
  std::vector<int64_t> byte_lengths;  // per id
  std::optional<int32_t> end_of_text;
  std::optional<int32_t> first_token;                  // in place of every row's first
  std::vector<data::DocumentRule> training_documents;  // of each source, see document_rule_of()
  data::DocumentRule validation_documents = data::DocumentRule::none;
  std::unique_ptr<data::Loader> loader;
  std::shared_ptr<const data::RecallTask> task;  // in place of texts; its test rows are the validation data
  int64_t test_rows = 0, test_from = 0;
  std::optional<data::Dataset> train, validation;  // validation: absent if the config names none
  std::shared_ptr<const DataIdentity> identity;    // of a training
  std::unique_ptr<data::IdScan> scan;              // of a training: look() before each step

  int64_t num_ids() const { return tokenizer->vocab_size() + (first_token ? 1 : 0); }
  bool keeps_documents_apart() const;  // some source tells its documents apart
  std::string documents_text() const;  // for people: "data.train[0]: a document ends with id 50256, ..."
  std::string text() const;            // for people: what the run is trained and validated on
  data::SampleSource samples() const;  // of the training; this must outlive it
  data::ValidationWindows windows(int64_t context) const;
};

struct PrepareOptions {
  // For reading a run: uses the shards of texts that are there, though the texts changed or are gone, and the files of
  // data.txtpb, though the patterns match others.
  bool keeps_shards = false;
  // For a training: writes data.txtpb. Where a run is continued, other data than it lists are an Error, and
  // data.keep_files=true takes the files of that list. Begins the scan of all ids, and waits for it up to 2^29 ids.
  bool records = false, is_continued = false;
  std::string shards = {};  // folder of the shards; default `run_folder`/data
  std::function<void(const std::string& path, int64_t done, int64_t total)> progress = {};  // bytes
};
// Texts are tokenised into shards below `run_folder`/data once.
RunData prepare_data(const config::Loaded& config, const std::string& run_folder, const PrepareOptions& options);

}  // namespace weft::train
