// The weights of a checkpoint as they would be without adapters: W + alpha / rank up down in place of W, down and up.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "trainers/config/config.h"
#include "weft/io/safetensors.h"

namespace weft::huggingface {

class MergedWeights {
 public:
  // Of the model with its adapters, resolved. Error if a part of an adapter is missing or of another shape. `file` must outlive this.
  MergedWeights(const io::SafetensorsFile& file, const config::Model& model);

  const std::string& path() const { return file_.path(); }
  const std::vector<std::string>& names() const { return names_; }  // without those of adapters
  Tensor load(const std::string& name) const;                       // f32
  int64_t num_merged() const { return static_cast<int64_t>(alphas_.size()); }

 private:
  Tensor part(const std::string& name, int64_t rows, int64_t columns) const;

  const io::SafetensorsFile& file_;
  std::vector<std::string> names_;
  std::map<std::string, double> alphas_;  // of matrices with an adapter
};

}  // namespace weft::huggingface
