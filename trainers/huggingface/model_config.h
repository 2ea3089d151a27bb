// config.json as Weft's model, and back.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "trainers/config/config.h"
#include "trainers/huggingface/names.h"

namespace weft::huggingface {

struct ModelConfig {
  Family family = Family::llama;
  config::Model model = {};                         // without defaults filled in
  std::optional<int32_t> end_of_text = {};          // that config.json says
  std::optional<int32_t> default_end_of_text = {};  // of transformers' class, where config.json says nothing of it
  std::vector<std::string> notes = {};              // what of config.json the model does not take, for people
};

// Error that names the field of what Weft does not have. `where` is the path of the file.
ModelConfig read_model(const nlohmann::json& config, const std::string& where);

// Of a resolved model with `vocab` ids. ConfigError that names the first field of the model that no family's config.json can say.
struct Written {
  Family family = Family::llama;
  nlohmann::ordered_json config;
};
Written write_model(const config::Loaded& loaded, int64_t vocab);

}  // namespace weft::huggingface
