// Tokenizers of Hugging Face folders: tokenizer.json, or GPT-2's pair vocab.json and merges.txt.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "trainers/config/config.h"
#include "trainers/huggingface/folder.h"
#include "trainers/huggingface/names.h"

namespace weft::huggingface {

using NamedFiles = std::vector<std::pair<std::string, std::string>>;  // name and contents

// As the config of an imported run has it.
struct RunTokenizer {
  std::string name = "ids";  // or bpe, gpt2
  config::Tokenizer config = {};
  NamedFiles files = {};                    // for the run's folder
  std::optional<int64_t> vocab = {};        // absent: the model's
  std::optional<int32_t> end_of_text = {};  // the tokenizer's own
  std::vector<std::string> notes = {};      // why it is not taken, and what of it is not
};
// Ids, with a note that says why, where there is none or none that Weft reads. `vocab`: ids of the model. `run` is the folder to be.
RunTokenizer take_tokenizer(const Folder& folder, Family family, int64_t vocab, const std::string& run);

// As a folder has the tokenizer of a run whose model has `vocab` ids.
struct FolderTokenizer {
  NamedFiles files = {};
  std::optional<int64_t> begin_of_text = {}, end_of_text = {};
  std::vector<std::string> notes = {};
};
FolderTokenizer give_tokenizer(const config::Loaded& run, int64_t vocab);

}  // namespace weft::huggingface
