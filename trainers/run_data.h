// Tokenizer, training loader and validation windows of a run, made from its config.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "trainers/config.h"
#include "weft/data/loader.h"
#include "weft/data/tokenizer.h"

namespace weft::train {

struct RunData {
  std::shared_ptr<const data::Tokenizer> tokenizer;
  std::vector<int64_t> byte_lengths;  // per id
  std::optional<int32_t> end_of_text;
  std::optional<int32_t> first_token;  // in place of every row's first
  data::DocumentRule documents = data::DocumentRule::none;
  std::unique_ptr<data::Loader> loader;
  std::optional<data::Dataset> train, validation;  // validation: absent if the config names none

  int64_t num_ids() const { return tokenizer->vocab_size() + (first_token ? 1 : 0); }
  bool keeps_documents_apart() const { return documents != data::DocumentRule::none; }
  data::ValidationWindows windows(int64_t context) const;
};

struct PrepareOptions {
  bool keeps_shards = false;  // use the shards of texts that are there, though the texts changed or are gone
  std::string shards = {};    // folder of the shards; default `run_folder`/data
  std::function<void(const std::string& path, int64_t done, int64_t total)> progress = {};  // bytes
};
// Texts are tokenised into shards below `run_folder`/data once.
RunData prepare_data(const config::Loaded& config, const std::string& run_folder, const PrepareOptions& options);

}  // namespace weft::train
