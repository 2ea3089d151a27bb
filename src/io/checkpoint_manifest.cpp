#include "src/io/internal/checkpoint_manifest.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "src/io/manifest.pb.h"
#include "weft/core/error.h"

namespace weft::io::internal {

namespace {

// Field 15 as fixed64, the last of the message: one byte of tag, eight of value.
constexpr char kChecksumTag = static_cast<char>(15 << 3 | 1);
constexpr size_t kChecksumBytes = 9;
constexpr std::string_view kFix = "use another checkpoint of this run";

[[noreturn]] void refuse(const std::string& path, std::string_view problem) {
  fail(str("checkpoint ", path, ": manifest ", problem), std::string(kFix));
}

std::string_view verified_body(std::string_view bytes, const std::string& path) {
  if (bytes.size() < kChecksumBytes || bytes[bytes.size() - kChecksumBytes] != kChecksumTag)
    refuse(path, str("is damaged: its ", bytes.size(), " bytes do not end with a checksum"));
  std::string_view body = bytes.substr(0, bytes.size() - kChecksumBytes);
  uint64_t expected = 0;
  std::memcpy(&expected, bytes.data() + bytes.size() - sizeof expected, sizeof expected);
  if (xxh3_64(body) != expected) refuse(path, "is damaged: its checksum is wrong");
  return body;
}

void check_plain_name(const std::string& name, const std::string& path) {
  bool is_plain = !name.empty() && name != "." && name != ".." && name.find('/') == std::string::npos &&
                  name.find('\0') == std::string::npos;
  if (!is_plain) refuse(path, str("names the file '", name, "', which is not a name within the folder"));
}

}  // namespace

std::string encode_manifest(const CheckpointInfo& info) {
  Manifest manifest;
  manifest.set_format_version(info.format_version);
  manifest.set_step(info.step);
  manifest.set_tokens(info.tokens);
  for (const MeshAxis& axis : info.mesh) {
    ManifestAxis* out = manifest.add_mesh();
    out->set_name(axis.name);
    out->set_size(axis.size);
  }
  for (const CheckpointInfo::File& file : info.files) {
    ManifestFile* out = manifest.add_files();
    out->set_name(file.name);
    out->set_size(file.digest.size);
    out->set_xxh3(file.digest.xxh3);
  }
  for (const CheckpointInfo::StoredTensor& tensor : info.tensors) {
    ManifestTensor* out = manifest.add_tensors();
    out->set_name(tensor.name);
    out->set_file(tensor.file);
    out->set_dtype(tensor.dtype);
    out->mutable_shape()->Assign(tensor.shape.begin(), tensor.shape.end());
    out->mutable_shard_begin()->Assign(tensor.shard_begin.begin(), tensor.shard_begin.end());
    out->mutable_shard_end()->Assign(tensor.shard_end.begin(), tensor.shard_end.end());
    out->set_offset(tensor.offset);
    out->set_size(tensor.size);
    out->set_xxh3(tensor.xxh3);
    out->set_num_not_finite(tensor.num_not_finite);
  }
  std::string bytes = manifest.SerializeAsString();
  uint64_t checksum = xxh3_64(bytes);
  bytes.push_back(kChecksumTag);
  bytes.append(reinterpret_cast<const char*>(&checksum), sizeof checksum);
  return bytes;
}

CheckpointInfo decode_manifest(std::string_view bytes, const std::string& path) {
  std::string_view body = verified_body(bytes, path);
  Manifest manifest;
  if (!manifest.ParseFromArray(body.data(), static_cast<int>(body.size())))
    refuse(path, "is damaged: it is no valid message");
  if (manifest.format_version() != kCheckpointFormatVersion)
    fail(str("checkpoint ", path, ": manifest has format version ", manifest.format_version(), ", this program reads ",
             kCheckpointFormatVersion),
         "use the version of weft that wrote the checkpoint");

  CheckpointInfo info;
  info.path = path;
  info.format_version = manifest.format_version();
  info.step = manifest.step();
  info.tokens = manifest.tokens();
  for (const ManifestAxis& axis : manifest.mesh()) info.mesh.push_back({axis.name(), axis.size()});
  for (const ManifestFile& file : manifest.files()) {
    check_plain_name(file.name(), path);
    info.files.push_back({file.name(), {file.size(), file.xxh3()}});
  }
  for (const ManifestTensor& tensor : manifest.tensors()) {
    info.tensors.push_back({.name = tensor.name(),
                            .file = tensor.file(),
                            .dtype = tensor.dtype(),
                            .shape = {tensor.shape().begin(), tensor.shape().end()},
                            .shard_begin = {tensor.shard_begin().begin(), tensor.shard_begin().end()},
                            .shard_end = {tensor.shard_end().begin(), tensor.shard_end().end()},
                            .offset = tensor.offset(),
                            .size = tensor.size(),
                            .xxh3 = tensor.xxh3(),
                            .num_not_finite = tensor.num_not_finite()});
  }
  return info;
}

}  // namespace weft::io::internal

namespace weft::io {

bool CheckpointInfo::is_finite() const {
  return std::all_of(tensors.begin(), tensors.end(), [](const StoredTensor& t) { return t.num_not_finite == 0; });
}

}  // namespace weft::io
