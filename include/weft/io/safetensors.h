// safetensors files: named tensors behind a JSON header.
//   io::write_safetensors("model.safetensors", {{"w", w}, {"b", b}});
//   auto file = io::SafetensorsFile::open("model.safetensors");
//   Tensor w = file.load("w");            // a copy;  file.map("w") borrows the mapped file instead
// The reader does not trust files. It checks every rule of the format before it returns a tensor, and an Error names path and byte offset.
// Tensors are on the CPU. Tensors of a dtype that Weft does not have are listed, and refused by name when they are loaded.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "weft/core/tensor.h"
#include "weft/io/files.h"

namespace weft::io {

struct NamedTensor {
  std::string name;
  Tensor tensor;
};

// One entry of the header.
struct TensorEntry {
  std::string name;
  std::string dtype;  // as in the file: "F32", "F8_E4M3", ...
  std::vector<int64_t> shape;
  uint64_t offset = 0;       // of the first byte, from the start of the file
  uint64_t size = 0;         // bytes
  bool is_loadable = false;  // Weft has this dtype and a Shape holds that many dimensions
};

class SafetensorsFile {
 public:
  static SafetensorsFile open(const std::string& path);

  const std::string& path() const { return file_->path(); }
  const std::vector<TensorEntry>& tensors() const { return tensors_; }  // in the order of their data
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  // Second names of tensors (tied weights): metadata entries whose key is not a tensor and whose value is the name of one.
  const std::map<std::string, std::string, std::less<>>& aliases() const { return aliases_; }
  const TensorEntry* find(std::string_view name) const;  // also by a second name; nullptr if absent
  std::string_view bytes(const TensorEntry& entry) const { return file_->bytes().substr(entry.offset, entry.size); }
  std::string_view file_bytes() const { return file_->bytes(); }

  // A tensor by name, on the CPU. Error if it is absent, if Weft does not have its dtype, or if a BOOL byte is neither 0 nor 1.
  Tensor load(std::string_view name) const;  // own memory
  // Uses the pages of the mapped file, which stay mapped as long as the tensor exists. Writing to the tensor does not change the file. If the
  // data is not aligned for the dtype (some other writers do not align), this copies as load() does.
  Tensor map(std::string_view name) const;

 private:
  const TensorEntry& loadable(std::string_view name) const;

  std::shared_ptr<MappedFile> file_;
  std::vector<TensorEntry> tensors_;
  std::map<std::string, size_t, std::less<>> index_;
  std::map<std::string, std::string, std::less<>> aliases_;
  std::map<std::string, std::string> metadata_;
};

// What load_into() found: names, and for mismatches both shapes and dtypes.
struct LoadReport {
  std::vector<std::string> loaded, missing, unexpected, mismatched;
  bool is_complete() const { return missing.empty() && unexpected.empty() && mismatched.empty(); }
};
std::string to_string(const LoadReport& report);  // "12 loaded; 1 missing: head.w; ..."

enum class LoadRule { exact, partial };

// Copies the file's tensors into the memory of the targets with the same name, shape and dtype. `exact`: if anything does not match, an Error
// with the report, and no target is changed. `partial`: loads what matches. A second name in the file counts as a name. A target that is
// absent from the file counts as loaded if it shares its memory with a target that is there (tied weights).
LoadReport load_into(const SafetensorsFile& file, const std::vector<NamedTensor>& targets, LoadRule rule);

struct SafetensorsOptions {
  std::map<std::string, std::string> metadata = {};  // beside {"format": "pt"}, which common loaders ask for
  FileWriter::Placement placement = FileWriter::Placement::aside;
  // Where set, the tensors say names, shapes and dtypes alone, none is the same memory as another, and this gives each of them once, when the
  // file has come to it.
  std::function<Tensor(const std::string& name)> elements = {};
};

// Writes contiguous tensors, sorted by descending element size, then by name. Tensors with the same memory, shape and dtype (tied weights)
// are written once, under the name given first; the metadata maps every other name to it, as common writers do. Other views that share
// memory are each written in full. Before anything is written, an Error refuses what readers do not accept: a header of more than 100 MB,
// texts that are not UTF-8, BOOL bytes other than 0 and 1. Returns the file's size and XXH3-64.
FileDigest write_safetensors(const std::string& path, const std::vector<NamedTensor>& tensors,
                             const SafetensorsOptions& options = {});

std::string_view safetensors_name(DType dtype);  // "F32", "BF16", "F64", "I64", "I32", "U8", "BOOL"

}  // namespace weft::io
