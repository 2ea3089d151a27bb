#include "trainers/huggingface/folder.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>

#include "trainers/huggingface/json_fields.h"
#include "weft/core/error.h"
#include "weft/data/tokenizer.h"
#include "weft/io/files.h"
#include "weft/ops/elementwise.h"

namespace weft::huggingface {

namespace {

constexpr uint64_t kMaxConfigBytes = uint64_t{16} << 20, kMaxIndexBytes = uint64_t{256} << 20;

// IEEE half precision, exactly.
float half_to_float(uint16_t half) {
  const int exponent = half >> 10 & 0x1f;
  const auto mantissa = static_cast<float>(half & 0x3ff);
  const float sign = half >> 15 ? -1.0f : 1.0f;
  if (exponent == 0) return sign * std::ldexp(mantissa, -24);
  if (exponent == 31) return mantissa == 0 ? sign * INFINITY : NAN;
  return sign * std::ldexp(1024 + mantissa, exponent - 25);
}

Tensor from_half(std::string_view bytes, const std::vector<int64_t>& shape) {
  Tensor out = Tensor::empty(Shape(shape), kF32, Device::cpu());
  float* to = out.mutable_data<float>();
  for (int64_t i = 0; i < out.num_elements(); ++i) {
    uint16_t half = 0;
    std::memcpy(&half, bytes.data() + 2 * i, sizeof half);
    to[i] = half_to_float(half);
  }
  return out;
}

}  // namespace

Folder Folder::open(const std::string& path) {
  WEFT_CHECK(io::is_folder(path), str(path, ": no such folder"), "give a model folder with config.json");
  Folder folder;
  folder.path_ = path;
  WEFT_CHECK(io::file_exists(folder.file(kConfigName)), str(path, ": has no ", kConfigName),
             "give a model folder as transformers' save_pretrained() writes it");
  folder.config_ = std::make_shared<const nlohmann::json>(read_json(folder.file(kConfigName), kMaxConfigBytes));
  const bool has_index = io::file_exists(folder.file(kIndexName)), has_model = io::file_exists(folder.file(kModelName));
  WEFT_CHECK(has_index || has_model, str(path, ": has neither ", kModelName, " nor ", kIndexName),
             "Weft reads safetensors only; in Python, save_pretrained() writes them");
  if (has_index) folder.open_shards();
  else folder.add(kModelName);
  return folder;
}

void Folder::add(const std::string& file_name) {
  files_.push_back(io::SafetensorsFile::open(file(file_name)));
  for (const io::TensorEntry& entry : files_.back().tensors())
    WEFT_CHECK(file_of_.emplace(entry.name, files_.size() - 1).second,
               str(path_, ": tensor '", data::show_utf8(entry.name), "' stands in two files, one is ", file_name),
               "give each tensor once");
}

void Folder::open_shards() {
  const nlohmann::json index = read_json(file(kIndexName), kMaxIndexBytes);
  JsonFields fields(index, file(kIndexName));
  const nlohmann::json* map = fields.find("weight_map");
  WEFT_CHECK(map && map->is_object(), str(file(kIndexName), ": has no weight_map"), "fetch or write the folder again");
  std::set<std::string> names;
  for (const auto& [tensor, shard] : map->items()) {
    WEFT_CHECK(shard.is_string(),
               str(file(kIndexName), ": the file of tensor '", data::show_utf8(tensor), "' is no text"),
               "fetch or write the folder again");
    names.insert(shard.get<std::string>());
  }
  for (const std::string& name : names) {
    const bool is_plain = name.ends_with(".safetensors") && name.find('/') == std::string::npos &&
                          name.find('\0') == std::string::npos && name[0] != '.';
    WEFT_CHECK(is_plain, str(file(kIndexName), ": names the file '", data::show_utf8(name), "'"),
               "shards are *.safetensors files in the same folder");
    add(name);
  }
  for (const auto& [tensor, shard] : map->items()) {
    auto at = file_of_.find(tensor);
    WEFT_CHECK(at != file_of_.end() && files_[at->second].path() == file(shard.get<std::string>()),
               str(file(kIndexName), ": tensor '", data::show_utf8(tensor), "' is not in ",
                   data::show_utf8(shard.get<std::string>())),
               "fetch or write the folder again");
  }
}

std::vector<std::string> Folder::tensors() const {
  std::vector<std::string> names;
  for (const auto& [name, at] : file_of_) names.push_back(name);
  return names;
}

const io::TensorEntry* Folder::find(const std::string& name) const {
  auto at = file_of_.find(name);
  return at == file_of_.end() ? nullptr : files_[at->second].find(name);
}

Tensor Folder::load(const std::string& name) const {
  const io::SafetensorsFile& file = files_[file_of_.at(name)];
  const io::TensorEntry& entry = *file.find(name);
  if (entry.dtype == "F16") return from_half(file.bytes(entry), entry.shape);
  WEFT_CHECK(entry.dtype == "F32" || entry.dtype == "BF16" || entry.dtype == "F64",
             str(file.path(), ": tensor '", data::show_utf8(name), "' is ", entry.dtype),
             "give weights as F32, BF16, F16 or F64");
  return ops::cast(file.load(name), kF32);
}

}  // namespace weft::huggingface
