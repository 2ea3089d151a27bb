#include "weft/io/safetensors.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <tuple>
#include <utility>

#include "src/io/internal/safetensors_header.h"
#include "weft/core/error.h"

namespace weft::io {

namespace {

DType dtype_from(std::string_view name) {
  for (DType dtype : {kF32, kBF16, kF64, kI64, kI32, kU8, kBool})
    if (safetensors_name(dtype) == name) return dtype;
  fail(str("safetensors: no dtype for ", name), "please report this");
}

}  // namespace

std::string_view safetensors_name(DType dtype) {
  switch (dtype) {
    case DType::float32: return "F32";
    case DType::bfloat16: return "BF16";
    case DType::float64: return "F64";
    case DType::int64: return "I64";
    case DType::int32: return "I32";
    case DType::uint8: return "U8";
    case DType::boolean: return "BOOL";
  }
  return "";
}

SafetensorsFile SafetensorsFile::open(const std::string& path) {
  SafetensorsFile file;
  file.file_ = MappedFile::open(path);
  internal::SafetensorsHeader header = internal::parse_safetensors_header(file.file_->bytes(), path);
  file.tensors_ = std::move(header.tensors);
  file.metadata_ = std::move(header.metadata);
  for (size_t i = 0; i < file.tensors_.size(); ++i) file.index_.emplace(file.tensors_[i].name, i);
  for (const auto& [key, value] : file.metadata_)
    if (key != "format" && file.index_.contains(value) && !file.index_.contains(key)) file.aliases_.emplace(key, value);
  return file;
}

const TensorEntry* SafetensorsFile::find(std::string_view name) const {
  auto at = index_.find(name);
  if (at != index_.end()) return &tensors_[at->second];
  auto alias = aliases_.find(name);
  return alias == aliases_.end() ? nullptr : &tensors_[index_.find(alias->second)->second];
}

const TensorEntry& SafetensorsFile::loadable(std::string_view name) const {
  const TensorEntry* entry = find(name);
  WEFT_CHECK(entry, str("safetensors ", path(), ": there is no tensor '", name, "' among its ", tensors_.size()),
             "list the names with weft inspect");
  WEFT_CHECK(entry->is_loadable,
             str("safetensors ", path(), ": byte ", entry->offset, ": tensor '", name, "' is ", entry->dtype, " with ",
                 entry->shape.size(), " dimensions, which Weft does not load"),
             str("convert it to F32, BF16, F64, I64, I32, U8 or BOOL with at most ", kMaxDims, " dimensions"));
  if (entry->dtype == "BOOL") {
    std::string_view data = bytes(*entry);
    auto bad = std::find_if(data.begin(), data.end(), [](char c) { return c != 0 && c != 1; });
    WEFT_CHECK(bad == data.end(),
               str("safetensors ", path(), ": byte ", entry->offset + static_cast<uint64_t>(bad - data.begin()),
                   ": BOOL tensor '", name, "' holds a byte that is neither 0 nor 1"),
               "the file is damaged; fetch or write it again");
  }
  return *entry;
}

Tensor SafetensorsFile::load(std::string_view name) const {
  const TensorEntry& entry = loadable(name);
  Tensor tensor = Tensor::empty(Shape(entry.shape), dtype_from(entry.dtype), Device::cpu());
  if (entry.size > 0) std::memcpy(tensor.mutable_raw(), bytes(entry).data(), entry.size);
  return tensor;
}

Tensor SafetensorsFile::map(std::string_view name) const {
  const TensorEntry& entry = loadable(name);
  DType dtype = dtype_from(entry.dtype);
  if (entry.offset % size_of(dtype) != 0) return load(name);  // the mapping itself begins at a page
  return Tensor::borrow(file_->data() + entry.offset, Shape(entry.shape), dtype, file_);
}

namespace {

void check_bools(const std::string& name, const Tensor& here, const std::string& path) {
  const auto* bytes = static_cast<const unsigned char*>(here.raw());
  const auto* bad = std::find_if(bytes, bytes + here.num_bytes(), [](unsigned char byte) { return byte > 1; });
  WEFT_CHECK(
      bad == bytes + here.num_bytes(),
      str("safetensors ", path, ": BOOL tensor '", name, "' holds ", static_cast<int>(*bad), " at ", bad - bytes),
      "give 0 and 1, or a uint8 tensor");
}

void check_writable(const NamedTensor& named, const std::string& path, bool has_elements) {
  const Tensor& t = named.tensor;
  WEFT_CHECK(named.name != "__metadata__", str("safetensors ", path, ": '__metadata__' is no tensor name"),
             "use another name");
  WEFT_CHECK(t.defined() && t.is_contiguous(),
             str("safetensors ", path, ": tensor '", named.name, "' is ",
                 t.defined() ? str(t, t.is_contiguous() ? "" : ", not contiguous") : std::string("undefined")),
             "give row-major tensors");
  if (t.dtype() == kBool && has_elements) check_bools(named.name, t.cpu(), path);
}

// The tensors to write, in their order; `aliases` gets the names that are the same memory, shape and dtype as one of these.
std::vector<const NamedTensor*> written_tensors(const std::string& path, const std::vector<NamedTensor>& tensors,
                                                bool has_elements, std::map<std::string, std::string>& aliases) {
  std::vector<const NamedTensor*> order;
  std::set<std::string_view> names;
  std::map<std::tuple<const void*, std::vector<int64_t>, DType>, const NamedTensor*> memory;
  for (const NamedTensor& named : tensors) {
    const Tensor& t = named.tensor;
    WEFT_CHECK(names.insert(named.name).second,
               str("safetensors ", path, ": the name '", named.name, "' is given twice"), "give unique names");
    check_writable(named, path, has_elements);
    auto [first, is_new] =
        memory.try_emplace({t.raw(), std::vector<int64_t>(t.shape().begin(), t.shape().end()), t.dtype()}, &named);
    if (is_new || t.num_bytes() == 0 || !has_elements) order.push_back(&named);
    else aliases.emplace(named.name, first->second->name);
  }
  std::sort(order.begin(), order.end(), [](const NamedTensor* a, const NamedTensor* b) {
    return std::pair(-static_cast<int>(size_of(a->tensor.dtype())), std::string_view(a->name)) <
           std::pair(-static_cast<int>(size_of(b->tensor.dtype())), std::string_view(b->name));
  });
  return order;
}

}  // namespace

FileDigest write_safetensors(const std::string& path, const std::vector<NamedTensor>& tensors,
                             const SafetensorsOptions& options) {
  std::map<std::string, std::string> metadata = options.metadata, aliases;
  metadata.emplace("format", "pt");
  std::vector<const NamedTensor*> order = written_tensors(path, tensors, !options.elements, aliases);
  for (const auto& [name, written] : aliases)
    WEFT_CHECK(metadata.emplace(name, written).second,
               str("safetensors ", path, ": '", name, "' is the same memory as '", written,
                   "', which the metadata would say under a key that it has already"),
               "give the tensor or the metadata another name, or a copy of the tensor");

  std::vector<TensorEntry> entries;
  uint64_t offset = 0;
  for (const NamedTensor* named : order) {
    const Tensor& t = named->tensor;
    entries.push_back({.name = named->name,
                       .dtype = std::string(safetensors_name(t.dtype())),
                       .shape = {t.shape().begin(), t.shape().end()},
                       .offset = offset,
                       .size = t.num_bytes(),
                       .is_loadable = true});
    offset += t.num_bytes();
  }
  std::string header = internal::make_safetensors_header(entries, metadata);
  header.append((8 - header.size() % 8) % 8, ' ');
  uint64_t length = header.size();
  WEFT_CHECK(length <= internal::kMaxHeaderBytes,
             str("safetensors ", path, ": the header of ", order.size(), " tensors would have ", length,
                 " bytes, and no reader takes more than ", internal::kMaxHeaderBytes),
             "write several files, or shorter names and metadata");

  FileWriter writer(path, options.placement);
  writer.write({reinterpret_cast<const char*>(&length), sizeof length});
  writer.write(header);
  for (const NamedTensor* named : order) {
    const Tensor& t = named->tensor;
    const Tensor here = (options.elements ? options.elements(named->name) : t).cpu();
    WEFT_CHECK(here.shape() == t.shape() && here.dtype() == t.dtype() && here.is_contiguous(),
               str("safetensors ", path, ": '", named->name, "' was said to be ", t, ", and its elements are ", here),
               "give row-major elements of the shape and dtype that were said");
    if (options.elements && here.dtype() == kBool) check_bools(named->name, here, path);
    writer.write({static_cast<const char*>(here.raw()), here.num_bytes()});
  }
  return writer.commit();
}

}  // namespace weft::io
