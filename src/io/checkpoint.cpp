// Saving and loading one checkpoint folder. Order of a save, each step durable before the next begins: files and
// manifest in step-N.partial/, the folder, its name, `latest`.
#include "weft/io/checkpoint.h"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

#include "src/io/internal/checkpoint_manifest.h"
#include "src/io/internal/posix.h"
#include "weft/core/error.h"

namespace weft::io {

using namespace internal;

namespace {

constexpr uint64_t kMaxManifestBytes = uint64_t{1} << 30;
constexpr FileWriter::Placement kInPlace = FileWriter::Placement::in_place;

void store_text(CheckpointInfo& info, std::string_view name, std::string_view bytes) {
  FileWriter writer(str(info.path, "/", name), kInPlace);
  writer.write(bytes);
  info.files.push_back({std::string(name), writer.commit()});
}

// Elements whose exponent has all bits set: NaN and infinities.
template <class Bits>
int64_t count_full_exponents(std::string_view bytes, Bits exponent) {
  int64_t count = 0;
  for (size_t at = 0; at + sizeof(Bits) <= bytes.size(); at += sizeof(Bits)) {
    Bits value;
    std::memcpy(&value, bytes.data() + at, sizeof value);
    count += (value & exponent) == exponent;
  }
  return count;
}

int64_t count_not_finite(std::string_view bytes, std::string_view dtype) {
  if (dtype == "F32") return count_full_exponents<uint32_t>(bytes, 0x7f800000u);
  if (dtype == "F64") return count_full_exponents<uint64_t>(bytes, 0x7ff0000000000000u);
  if (dtype == "BF16") return count_full_exponents<uint16_t>(bytes, 0x7f80);
  if (dtype == "F16") return count_full_exponents<uint16_t>(bytes, 0x7c00);
  return 0;  // integers
}

void store_tensors(CheckpointInfo& info, std::string_view name, const std::vector<NamedTensor>& tensors,
                   SafetensorsOptions options) {
  std::string path = str(info.path, "/", name);
  options.metadata = {{"step", str(info.step)}};
  options.placement = kInPlace;
  info.files.push_back({std::string(name), write_safetensors(path, tensors, options)});
  SafetensorsFile written = SafetensorsFile::open(path);
  for (const TensorEntry& entry : written.tensors()) {
    info.tensors.push_back({.name = entry.name,
                            .file = std::string(name),
                            .dtype = entry.dtype,
                            .shape = entry.shape,
                            .shard_begin = std::vector<int64_t>(entry.shape.size(), 0),
                            .shard_end = entry.shape,
                            .offset = entry.offset,
                            .size = entry.size,
                            .xxh3 = xxh3_64(written.bytes(entry)),
                            .num_not_finite = count_not_finite(written.bytes(entry), entry.dtype)});
  }
}

void store_everything(const std::string& partial, const CheckpointData& data) {
  CheckpointInfo info;
  info.path = partial;
  info.format_version = kCheckpointFormatVersion;
  info.step = data.step;
  info.tokens = data.tokens;
  info.mesh = data.mesh;
  store_tensors(info, kModelName, data.model, {});
  store_tensors(info, kOptimizerName, data.optimizer, {.elements = data.optimizer_elements});
  store_text(info, kStateName, data.state);
  store_text(info, kConfigName, data.config);
  FileWriter writer(str(partial, "/", kManifestName), kInPlace);
  writer.write(encode_manifest(info));
  writer.commit();
  sync_folder(partial);
}

// Gives `partial` the name `path`. An older checkpoint of that step is exchanged in one call, so that at every moment
// one of the two is there under its full name, and removed afterwards.
void put_in_place(const std::string& partial, const std::string& path) {
  if (!file_exists(path)) return rename_path(partial, path);
  if (::renameat2(AT_FDCWD, partial.c_str(), AT_FDCWD, path.c_str(), RENAME_EXCHANGE) == 0) {
    sync_folder(folder_of(path));
    return remove_folder(partial);
  }
  if (errno != EINVAL && errno != ENOSYS) fail_errno("replace", path, errno);
  std::string replaced = path + ".replaced.partial";  // file systems that cannot exchange
  remove_folder(replaced);
  rename_path(path, replaced);
  rename_path(partial, path);
  remove_folder(replaced);
}

// As one step: `path` is the old checkpoint or the new one.
void put(const std::string& path, const CheckpointData& data) {
  const std::string partial = path + ".partial";
  remove_folder(partial);
  make_folders(partial);
  try {
    store_everything(partial, data);
    put_in_place(partial, path);
  } catch (...) {
    try {
      remove_folder(partial);
    } catch (const Error&) {
      // The first error is the one to report; a partial folder is never taken for a checkpoint.
    }
    throw;
  }
}

[[noreturn]] void refuse(const CheckpointInfo& info, std::string_view problem) {
  fail(str("checkpoint ", info.path, ": ", problem), "use another checkpoint of this run");
}

// The first tensor of `file` that the bytes do not hold as the manifest says; a text for the error.
std::string damaged_part(const CheckpointInfo& info, const std::string& file, std::string_view bytes) {
  for (const CheckpointInfo::StoredTensor& tensor : info.tensors) {
    if (tensor.file != file) continue;
    bool is_inside = tensor.offset <= bytes.size() && tensor.size <= bytes.size() - tensor.offset;
    if (!is_inside || xxh3_64(bytes.substr(tensor.offset, tensor.size)) != tensor.xxh3)
      return str("; the first damaged tensor is '", tensor.name, "' at byte ", tensor.offset);
  }
  return file.ends_with(".safetensors") ? "; all tensors are whole, the header is damaged" : "";
}

void verify_file(const CheckpointInfo& info, const CheckpointInfo::File& file) {
  std::string path = info.path + "/" + file.name;
  if (!file_exists(path)) refuse(info, str("file ", file.name, " is missing"));
  auto mapped = MappedFile::open(path);
  std::string_view bytes = mapped->bytes();
  if (bytes.size() != file.digest.size)
    refuse(info, str("file ", file.name, " has ", bytes.size(), " bytes, the manifest says ", file.digest.size,
                     damaged_part(info, file.name, bytes)));
  if (xxh3_64(bytes) != file.digest.xxh3)
    refuse(info, str("file ", file.name, " has a wrong checksum", damaged_part(info, file.name, bytes)));
}

// A manifest with a good checksum can still have been made for other files.
void verify_tensors(const CheckpointInfo& info, const SafetensorsFile& file, std::string_view name) {
  size_t num_listed = 0;
  for (const CheckpointInfo::StoredTensor& tensor : info.tensors) {
    if (tensor.file != name) continue;
    const TensorEntry* entry = file.find(tensor.name);
    if (!entry || entry->dtype != tensor.dtype || entry->shape != tensor.shape)
      refuse(info, str("file ", name, " does not hold tensor '", tensor.name, "' as the manifest lists it"));
    ++num_listed;
  }
  if (num_listed != file.tensors().size())
    refuse(info, str("file ", name, " holds ", file.tensors().size(), " tensors, the manifest lists ", num_listed));
}

}  // namespace

std::string checkpoint_path(const std::string& folder, int64_t step) {
  std::string digits = str(step);
  return str(folder, "/step-", std::string(digits.size() < 8 ? 8 - digits.size() : 0, '0'), digits);
}

std::string save_checkpoint(const std::string& folder, const CheckpointData& data) {
  WEFT_CHECK(data.step >= 0, str("save_checkpoint: step is ", data.step), "steps count from 0");
  std::string path = checkpoint_path(folder, data.step);
  make_folders(folder);
  put(path, data);
  write_file_atomically(folder + "/latest", str(path.substr(folder.size() + 1), "\n"));
  return path;
}

CheckpointInfo read_checkpoint_info(const std::string& path) {
  std::string manifest = str(path, "/", kManifestName);
  WEFT_CHECK(is_folder(path) && file_exists(manifest),
             str("checkpoint ", path, ": there is no manifest, so this is no checkpoint"),
             "give a folder like run/checkpoints/step-00001000");
  return decode_manifest(read_file(manifest, kMaxManifestBytes), path);
}

Checkpoint load_checkpoint(const std::string& path) {
  CheckpointInfo info = read_checkpoint_info(path);
  for (std::string_view needed : {kModelName, kOptimizerName, kStateName, kConfigName}) {
    bool is_listed =
        std::any_of(info.files.begin(), info.files.end(), [&](const auto& file) { return file.name == needed; });
    if (!is_listed) refuse(info, str("the manifest does not list the file ", needed));
  }
  for (const CheckpointInfo::File& file : info.files) verify_file(info, file);
  Checkpoint checkpoint{.info = std::move(info),
                        .model = SafetensorsFile::open(str(path, "/", kModelName)),
                        .optimizer = SafetensorsFile::open(str(path, "/", kOptimizerName)),
                        .state = read_file(str(path, "/", kStateName)),
                        .config = read_file(str(path, "/", kConfigName))};
  verify_tensors(checkpoint.info, checkpoint.model, kModelName);
  verify_tensors(checkpoint.info, checkpoint.optimizer, kOptimizerName);
  return checkpoint;
}

bool has_optimizer(const CheckpointInfo& info) {
  return std::ranges::any_of(info.tensors, [](const auto& tensor) { return tensor.file == kOptimizerName; });
}

void drop_optimizer(const std::string& path) {
  const Checkpoint old = load_checkpoint(path);
  CheckpointData data{.step = old.info.step,
                      .tokens = old.info.tokens,
                      .mesh = old.info.mesh,
                      .state = old.state,
                      .config = old.config};
  for (const TensorEntry& entry : old.model.tensors()) data.model.push_back({entry.name, old.model.map(entry.name)});
  put(path, data);
}

}  // namespace weft::io
