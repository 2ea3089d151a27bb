// A model folder as transformers writes it: config.json, and model.safetensors or shards that model.safetensors.index.json lists.
// Nothing in it is trusted: an Error names the file and what is wrong with it.
#pragma once

#include <map>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "weft/io/safetensors.h"

namespace weft::huggingface {

inline constexpr const char* kConfigName = "config.json";
inline constexpr const char* kModelName = "model.safetensors";
inline constexpr const char* kIndexName = "model.safetensors.index.json";
inline constexpr const char* kTokenizerName = "tokenizer.json";

class Folder {
 public:
  static Folder open(const std::string& path);

  const std::string& path() const { return path_; }
  std::string file(std::string_view name) const { return path_ + "/" + std::string(name); }
  const nlohmann::json& config() const { return *config_; }
  std::vector<std::string> tensors() const;                    // names, sorted
  const io::TensorEntry* find(const std::string& name) const;  // null if there is none
  Tensor load(const std::string& name) const;                  // f32 on the CPU, from F32, F64, BF16 or F16

 private:
  void open_shards();
  void add(const std::string& file_name);

  std::string path_;
  std::shared_ptr<const nlohmann::json> config_;
  std::vector<io::SafetensorsFile> files_;
  std::map<std::string, size_t> file_of_;  // by the tensor's name
};

}  // namespace weft::huggingface
