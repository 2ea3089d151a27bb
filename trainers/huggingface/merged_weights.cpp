#include "trainers/huggingface/merged_weights.h"

#include <algorithm>

#include "weft/core/error.h"
#include "weft/core/pattern.h"
#include "weft/ops/elementwise.h"

namespace weft::huggingface {

namespace {

constexpr std::string_view kDown = ".adapter_down", kUp = ".adapter_up", kWeight = ".weight";

// Of the first adapter that matches the layer, as models choose it.
double alpha_of(const config::Model& model, const std::string& layer, const std::string& path) {
  for (const config::Adapter& adapter : model.adapter())
    if (matches_pattern(adapter.match(), layer)) return adapter.alpha();
  fail(str(path, ": ", layer, " has an adapter that no model.adapter of the config matches"),
       "the checkpoint is not of this config");
}

}  // namespace

MergedWeights::MergedWeights(const io::SafetensorsFile& file, const config::Model& model) : file_(file) {
  for (const io::TensorEntry& entry : file.tensors()) {
    if (entry.name.ends_with(kDown)) {
      const std::string up = entry.name.substr(0, entry.name.size() - kDown.size()) + std::string(kUp);
      WEFT_CHECK(file.find(up), str(file.path(), ": ", up, " is missing"),
                 "the checkpoint is damaged; export another one");
      continue;
    }
    if (!entry.name.ends_with(kUp)) {
      names_.push_back(entry.name);
      continue;
    }
    const std::string layer = entry.name.substr(0, entry.name.size() - kUp.size());
    alphas_[layer + std::string(kWeight)] = alpha_of(model, layer, file.path());
  }
}

Tensor MergedWeights::part(const std::string& name, int64_t rows, int64_t columns) const {
  const io::TensorEntry* entry = file_.find(name);
  const bool is_there = entry && entry->shape.size() == 2 && (rows < 0 || entry->shape[0] == rows) &&
                        (columns < 0 || entry->shape[1] == columns);
  WEFT_CHECK(is_there,
             str(file_.path(), ": ", name, entry ? " does not fit the matrix that it belongs to" : " is missing"),
             "the checkpoint is damaged; export another one");
  return ops::cast(file_.load(name), kF32);
}

Tensor MergedWeights::load(const std::string& name) const {
  const auto alpha = alphas_.find(name);
  if (alpha == alphas_.end()) return ops::cast(file_.load(name), kF32);
  Tensor out = part(name, -1, -1);
  const int64_t rows = out.size(0), columns = out.size(1);
  const std::string layer = name.substr(0, name.size() - kWeight.size());
  const Tensor up = part(layer + std::string(kUp), rows, -1);
  const int64_t rank = up.size(1);
  const Tensor down = part(layer + std::string(kDown), rank, columns);
  const double scale = alpha->second / static_cast<double>(rank);
  float* to = out.mutable_data<float>();
  std::vector<double> row(static_cast<size_t>(columns));
  for (int64_t r = 0; r < rows; ++r) {
    std::fill(row.begin(), row.end(), 0.0);
    for (int64_t k = 0; k < rank; ++k) {
      const double factor = scale * static_cast<double>(up.data<float>()[r * rank + k]);
      const float* from = down.data<float>() + k * columns;
      for (int64_t c = 0; c < columns; ++c) row[static_cast<size_t>(c)] += factor * static_cast<double>(from[c]);
    }
    for (int64_t c = 0; c < columns; ++c)
      to[r * columns + c] = static_cast<float>(static_cast<double>(to[r * columns + c]) + row[static_cast<size_t>(c)]);
  }
  return out;
}

}  // namespace weft::huggingface
