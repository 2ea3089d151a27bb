// Which tensor of a Hugging Face model holds a parameter of Weft's, and how it lies there.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "trainers/config/config.h"

namespace weft::huggingface {

enum class Family { llama, qwen2, qwen3, qwen3_next, kimi_linear, gpt2 };
inline constexpr Family kFamilies[] = {Family::llama,      Family::qwen2,       Family::qwen3,
                                       Family::qwen3_next, Family::kimi_linear, Family::gpt2};
std::string_view name_of(Family family);  // model_type of config.json

// Their rows lie in `groups` equal groups of `stride` rows, and ours are those from `offset` on in each group; stride 0: they are the same.
struct Place {
  std::string name;
  bool is_transposed = false;  // GPT-2 stores matrices [in, out], where ours are [out, in]
  bool has_middle = false;     // a dimension of size 1 behind the rows
  int64_t groups = 1, offset = 0, stride = 0;
  double factor = 1, added = 0;  // ours are factor * theirs + added: gains that they store as the difference from 1
  bool is_constant = false;      // they have no such tensor, as if it were `added` everywhere
  std::vector<int64_t> reshaped = {};  // their shape, where the numbers lie as ours

  std::vector<int64_t> shape(const std::vector<int64_t>& ours) const;  // of their tensor
  // Where in their tensor element (row, column) of ours stands; a vector has one column.
  int64_t index(int64_t row, int64_t column, int64_t rows, int64_t columns) const;
};

// With the sizes that the layer fills in.
config::Delta completed(const config::Delta& delta, int64_t dim);
config::Mla completed(const config::Mla& mla, int64_t dim);

// Where a folder of the family has the parameters of a resolved model, which must outlive this.
class Places {
 public:
  Places(Family family, const config::Model& model);
  // `ours`: "layers.3.mixer.q.weight". Nothing where the family has no such parameter.
  std::optional<Place> of(std::string_view ours) const;

 private:
  Family family_;
  const config::Model& model_;
  std::vector<int> mixers_;  // as layer_mixers() gives them
};

// Their names in `in_layer` tables, of what Llama's layers and all that are made after them have: norms and the feed-forward network.
std::optional<Place> llama_layer_place(std::string_view in_layer, const std::string& prefix);

// Of the folder of a bare model (AutoModel), whose names lack it.
std::string_view prefix_of(Family family);
// Another name that the tensor may have there; empty: none.
std::string other_name(Family family, const std::string& theirs);

// Tensors that say nothing about the model: buffers of masks and frequencies, and a tied output head.
bool is_ignored(Family family, std::string_view theirs, bool has_tied_embedding);

}  // namespace weft::huggingface
