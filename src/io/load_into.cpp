// Loading a file into tensors that exist, with an account of what did not fit.
#include <algorithm>
#include <cstring>
#include <set>
#include <utility>

#include "weft/core/error.h"
#include "weft/io/safetensors.h"

namespace weft::io {

namespace {

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text;
  for (int64_t size : shape) text += str(text.empty() ? "" : ", ", size);
  return "[" + text + "]";
}

bool fits(const TensorEntry& entry, const Tensor& target) {
  return entry.dtype == safetensors_name(target.dtype()) && std::ranges::equal(entry.shape, target.shape());
}

void append_names(std::string& text, std::string_view what, const std::vector<std::string>& names) {
  constexpr size_t kMaxNames = 8;
  if (names.empty()) return;
  text += str("; ", names.size(), " ", what, ": ");
  for (size_t i = 0; i < std::min(names.size(), kMaxNames); ++i) text += str(i ? ", " : "", names[i]);
  if (names.size() > kMaxNames) text += ", ...";
}

// Sorts the names into the report; `matches` are the targets to fill.
LoadReport compare(const SafetensorsFile& file, const std::vector<NamedTensor>& targets,
                   std::vector<const NamedTensor*>& matches) {
  LoadReport report;
  std::set<std::string_view> names;
  std::set<std::pair<const void*, size_t>> memory;
  for (const NamedTensor& target : targets) {
    const Tensor& t = target.tensor;
    WEFT_CHECK(t.defined() && t.is_contiguous(),
               str("load_into: target '", target.name, "' is ", t.defined() ? to_string(t) : "undefined"),
               "give row-major tensors");
    WEFT_CHECK(names.insert(target.name).second, str("load_into: target '", target.name, "' is given twice"),
               "give unique names");
    const TensorEntry* entry = file.find(target.name);
    if (entry && fits(*entry, t)) {
      matches.push_back(&target);
      memory.emplace(t.raw(), t.num_bytes());
    } else if (entry) {
      report.mismatched.push_back(str("'", target.name, "' (file: ", shape_text(entry->shape), " ", entry->dtype,
                                      ", model: ", t.shape(), " ", safetensors_name(t.dtype()), ")"));
    }
  }
  for (const NamedTensor& target : targets) {
    bool is_tied = target.tensor.num_bytes() > 0 && memory.contains({target.tensor.raw(), target.tensor.num_bytes()});
    const TensorEntry* entry = file.find(target.name);
    if (entry ? fits(*entry, target.tensor) : is_tied) report.loaded.push_back(target.name);
    else if (!entry) report.missing.push_back(target.name);
  }
  for (const TensorEntry& entry : file.tensors())
    if (!names.contains(entry.name)) report.unexpected.push_back(entry.name);
  return report;
}

}  // namespace

std::string to_string(const LoadReport& report) {
  std::string text = str(report.loaded.size(), " loaded");
  append_names(text, "missing from the file", report.missing);
  append_names(text, "unexpected in the file", report.unexpected);
  append_names(text, "of another shape or dtype", report.mismatched);
  return text;
}

LoadReport load_into(const SafetensorsFile& file, const std::vector<NamedTensor>& targets, LoadRule rule) {
  std::vector<const NamedTensor*> matches;
  LoadReport report = compare(file, targets, matches);
  WEFT_CHECK(rule == LoadRule::partial || report.is_complete(),
             str("load_into: ", file.path(), " does not fit the model: ", report),
             "use the config that the file was trained with, or load partially");
  std::vector<Tensor> sources;  // all are checked before the first target is written
  for (const NamedTensor* match : matches) sources.push_back(file.map(match->name));
  for (size_t i = 0; i < matches.size(); ++i) {
    Tensor target = matches[i]->tensor;
    target.set_bytes(sources[i]);
  }
  return report;
}

}  // namespace weft::io
