#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "trainers/config/config_error.h"
#include "trainers/huggingface/folder.h"
#include "trainers/huggingface/import.h"
#include "trainers/huggingface/model_config.h"
#include "trainers/run/address.h"
#include "trainers/run/session.h"
#include "weft/core/error.h"
#include "weft/io/checkpoint.h"
#include "weft/io/files.h"
#include "weft/ops/elementwise.h"

namespace weft::huggingface {

namespace {

// One of their tensors while ours come in.
struct Target {
  Tensor tensor;
  int64_t missing = 0;  // elements
};

void put(const Tensor& ours, const Place& place, Target& target) {
  const std::vector<int64_t> sizes(ours.shape().begin(), ours.shape().end());
  if (!target.tensor.defined()) {
    target.tensor = Tensor::empty(Shape(place.shape(sizes)), kF32, Device::cpu());
    target.missing = target.tensor.num_elements();
  }
  const float* from = ours.data<float>();
  float* to = target.tensor.mutable_data<float>();
  const int64_t rows = sizes[0], columns = ours.num_elements() / std::max<int64_t>(rows, 1);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c)
      to[place.index(r, c, rows, columns)] = from[r * columns + c] - static_cast<float>(place.added);
  target.missing -= rows * columns;
}

std::vector<io::NamedTensor> their_tensors(const io::SafetensorsFile& file, Family family, const config::Model& model,
                                           bool is_bf16) {
  std::map<std::string, Target> targets;
  for (const io::TensorEntry& entry : file.tensors()) {
    const std::optional<Place> place = place_of(family, model, entry.name);
    WEFT_CHECK(place, str(file.path(), ": tensor '", entry.name, "' has no place in a ", name_of(family), " folder"),
               "export a model without it");
    put(ops::cast(file.load(entry.name), kF32), *place, targets[place->name]);
  }
  std::vector<io::NamedTensor> out;
  for (auto& [name, target] : targets) {
    WEFT_CHECK(target.missing == 0, str(file.path(), ": only a part of ", name, " is there"),
               "the checkpoint is damaged; export another one");
    out.push_back({name, is_bf16 ? ops::cast(target.tensor, kBF16) : target.tensor});
  }
  return out;
}

// That the config names, where it is a tokenizer.json.
void copy_tokenizer(const config::Loaded& config, const std::string& folder, std::vector<std::string>& notes) {
  const config::Tokenizer& tokenizer = config.experiment.data().tokenizer();
  if (tokenizer.has_bpe()) {
    io::write_file_atomically(folder + "/" + kTokenizerName, io::read_file(tokenizer.bpe().file()));
  } else if (tokenizer.has_gpt2()) {
    io::write_file_atomically(folder + "/vocab.json", io::read_file(tokenizer.gpt2().vocab()));
    io::write_file_atomically(folder + "/merges.txt", io::read_file(tokenizer.gpt2().merges()));
  } else {
    notes.push_back("the run's tokenizer has no file there: readers give ids");
  }
}

}  // namespace

Exported export_run(const ExportOptions& options) {
  WEFT_CHECK(!io::file_exists(options.folder + "/" + kConfigName), str(options.folder, ": holds a model already"),
             "choose another folder with --out");
  const config::Loaded config = train::config_of_run(options.run, {}, {});
  const train::RunAddress address = train::find_run(options.run);
  std::vector<std::string> messages;
  std::optional<io::Checkpoint> checkpoint = address.checkpoint.empty()
                                                 ? io::load_latest_checkpoint(address.folder + "/checkpoints", messages)
                                                 : io::load_checkpoint(address.checkpoint);
  WEFT_CHECK(checkpoint, str(address.folder, " holds no checkpoint"), "continue the run until it saves one");
  const io::SafetensorsFile& weights = checkpoint->model;
  const io::TensorEntry* embedding = weights.find("embedding.weight");
  WEFT_CHECK(embedding && embedding->shape.size() == 2, str(weights.path(), ": has no embedding.weight"),
             "export a run of a language model");
  const Written written = write_model(config, embedding->shape[0]);
  Exported out{.family = std::string(name_of(written.family)), .notes = messages};
  const std::vector<io::NamedTensor> tensors =
      their_tensors(weights, written.family, config.experiment.model(), options.is_bf16);
  nlohmann::ordered_json json = written.config;
  if (options.is_bf16) json["torch_dtype"] = "bfloat16";
  io::make_folders(options.folder);
  copy_tokenizer(config, options.folder, out.notes);
  out.num_tensors = static_cast<int64_t>(tensors.size());
  out.bytes = io::write_safetensors(options.folder + "/" + kModelName, tensors).size;
  // Last: a folder with it is a model.
  io::write_file_atomically(options.folder + "/" + kConfigName, json.dump(2) + "\n");
  return out;
}

}  // namespace weft::huggingface
