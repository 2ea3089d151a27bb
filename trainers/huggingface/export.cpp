#include <algorithm>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include "trainers/config/config_error.h"
#include "trainers/huggingface/folder.h"
#include "trainers/huggingface/import.h"
#include "trainers/huggingface/merged_weights.h"
#include "trainers/huggingface/model_config.h"
#include "trainers/huggingface/tokenizer_files.h"
#include "trainers/run/address.h"
#include "trainers/run/session.h"
#include "weft/core/error.h"
#include "weft/io/checkpoint.h"
#include "weft/io/files.h"
#include "weft/ops/elementwise.h"

namespace weft::huggingface {

namespace {

// A folder that is there when it is whole: until commit() it has another name, and without commit() it is removed.
class NewFolder {
 public:
  explicit NewFolder(const std::string& path)
      : path_(std::filesystem::absolute(path + "/.").lexically_normal().parent_path().string()),
        partial_(path_ + ".partial") {
    const bool is_free = !io::file_exists(path_) || (io::is_folder(path_) && io::list_folder(path_).empty());
    if (!is_free)
      throw config::ConfigError(path + ": is there already, and not an empty folder.",
                                "Choose another folder with --out.");
    io::remove_folder(partial_);  // of an export that was killed
    io::make_folders(partial_);
  }
  ~NewFolder() {
    if (is_whole_) return;
    std::error_code ignored;  // whatever went wrong has been said
    std::filesystem::remove_all(partial_, ignored);
  }
  NewFolder(const NewFolder&) = delete;
  NewFolder& operator=(const NewFolder&) = delete;

  std::string file(const std::string& name) const { return partial_ + "/" + name; }
  void commit() {
    io::sync_folder(partial_);
    io::rename_path(partial_, path_);
    is_whole_ = true;
  }

 private:
  std::string path_, partial_;
  bool is_whole_ = false;
};

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
      to[place.index(r, c, rows, columns)] =
          static_cast<float>((static_cast<double>(from[r * columns + c]) - place.added) / place.factor);
  target.missing -= rows * columns;
}

// What they do not have may have been trained here.
void require_constant(const Tensor& ours, const Place& place, const std::string& name, Family family) {
  for (float x : ours.to_vector<float>())
    if (static_cast<double>(x) != place.added)
      throw config::ConfigError(str(name, " has no form in a Hugging Face folder: in ", name_of(family),
                                    " it would be ", place.added, ", and it has ", x, "."),
                                "Freeze it where the model is trained: start.frozen.");
}

std::vector<io::NamedTensor> their_tensors(const MergedWeights& weights, Family family, const config::Model& model,
                                           bool is_bf16) {
  std::map<std::string, Target> targets;
  const Places places(family, model);
  for (const std::string& name : weights.names()) {
    const std::optional<Place> place = places.of(name);
    WEFT_CHECK(place, str(weights.path(), ": tensor '", name, "' has no place in a ", name_of(family), " folder"),
               "export a model without it");
    const Tensor ours = weights.load(name);
    if (place->is_constant) require_constant(ours, *place, name, family);
    else put(ours, *place, targets[place->name]);
  }
  std::vector<io::NamedTensor> out;
  for (auto& [name, target] : targets) {
    WEFT_CHECK(target.missing == 0, str(weights.path(), ": only a part of ", name, " is there"),
               "the checkpoint is damaged; export another one");
    out.push_back({name, is_bf16 ? ops::cast(target.tensor, kBF16) : target.tensor});
  }
  return out;
}

uint64_t bytes_of(const io::NamedTensor& t) {
  return static_cast<uint64_t>(t.tensor.num_elements()) * static_cast<uint64_t>(size_of(t.tensor.dtype()));
}

// In their order, each shard as full as it can be; a tensor that is larger has a shard by itself.
std::vector<std::vector<io::NamedTensor>> shards_of(const std::vector<io::NamedTensor>& tensors, uint64_t most) {
  std::vector<std::vector<io::NamedTensor>> shards(1);
  uint64_t bytes = 0;
  for (const io::NamedTensor& tensor : tensors) {
    if (most > 0 && !shards.back().empty() && bytes + bytes_of(tensor) > most) shards.emplace_back(), bytes = 0;
    shards.back().push_back(tensor);
    bytes += bytes_of(tensor);
  }
  return shards;
}

std::string five_digits(size_t number) {
  const std::string digits = std::to_string(number);
  return std::string(5 - std::min<size_t>(digits.size(), 5), '0') + digits;
}

// Returns the bytes of the files.
uint64_t write_weights(const NewFolder& folder, const std::vector<io::NamedTensor>& tensors, uint64_t most) {
  const std::vector<std::vector<io::NamedTensor>> shards = shards_of(tensors, most);
  if (shards.size() == 1)
    return io::write_safetensors(folder.file(kModelName), tensors, {.placement = io::FileWriter::Placement::in_place})
        .size;
  nlohmann::ordered_json map = nlohmann::ordered_json::object();
  uint64_t written = 0, total = 0;
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string name = str("model-", five_digits(i + 1), "-of-", five_digits(shards.size()), ".safetensors");
    written +=
        io::write_safetensors(folder.file(name), shards[i], {.placement = io::FileWriter::Placement::in_place}).size;
    for (const io::NamedTensor& tensor : shards[i]) map[tensor.name] = name, total += bytes_of(tensor);
  }
  const nlohmann::ordered_json index{{"metadata", {{"total_size", total}}}, {"weight_map", map}};
  io::write_file_atomically(folder.file(kIndexName), index.dump(2) + "\n");
  return written;
}

nlohmann::ordered_json id_or_null(const std::optional<int64_t>& id) {
  return id ? nlohmann::ordered_json(*id) : nlohmann::ordered_json();
}

io::Checkpoint checkpoint_of(const train::RunAddress& address, std::vector<std::string>& messages) {
  if (!address.checkpoint.empty()) return io::load_checkpoint(address.checkpoint);
  std::optional<io::Checkpoint> newest = io::load_latest_checkpoint(address.folder + "/checkpoints", messages);
  WEFT_CHECK(newest, str(address.folder, " holds no checkpoint"), "continue the run until it saves one");
  return std::move(*newest);
}

}  // namespace

Exported export_run(const ExportOptions& options) {
  config::Loaded config = train::config_of_run(options.run, {}, {});
  config::Model& model = *config.experiment.mutable_model();
  if (model.adapter_size() > 0 && !options.merges_adapters)
    throw config::ConfigError("model.adapter has no form in a Hugging Face folder.",
                              "Add the adapters to the matrices beside them with --merge-adapters.");
  if (model.adapter_size() == 0 && options.merges_adapters)
    throw config::ConfigError("--merge-adapters: the model has no adapters.", "Leave --merge-adapters out.");
  Exported out;
  const io::Checkpoint checkpoint = checkpoint_of(train::find_run(options.run), out.notes);
  const io::TensorEntry* embedding = checkpoint.model.find("embedding.weight");
  WEFT_CHECK(embedding && embedding->shape.size() == 2, str(checkpoint.model.path(), ": has no embedding.weight"),
             "export a run of a language model");
  const MergedWeights weights(checkpoint.model, model);
  model.clear_adapter();
  const Written written = write_model(config, embedding->shape[0]);
  out.family = std::string(name_of(written.family));
  out.num_merged = weights.num_merged();
  const FolderTokenizer tokenizer = give_tokenizer(config, embedding->shape[0]);
  out.notes.insert(out.notes.end(), tokenizer.notes.begin(), tokenizer.notes.end());
  NewFolder folder(options.folder);
  const std::vector<io::NamedTensor> tensors = their_tensors(weights, written.family, model, options.is_bf16);
  nlohmann::ordered_json json = written.config;
  if (options.is_bf16) json["torch_dtype"] = "bfloat16";
  // Readers have ids of their own for what is left out.
  json["bos_token_id"] = id_or_null(tokenizer.begin_of_text);
  json["eos_token_id"] = id_or_null(tokenizer.end_of_text);
  for (const auto& [name, text] : tokenizer.files) io::write_file_atomically(folder.file(name), text);
  out.num_tensors = static_cast<int64_t>(tensors.size());
  out.bytes = write_weights(folder, tensors, options.max_shard_bytes);
  io::write_file_atomically(folder.file(kConfigName), json.dump(2) + "\n");
  folder.commit();
  return out;
}

}  // namespace weft::huggingface
