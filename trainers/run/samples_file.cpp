#include "trainers/run/samples_file.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>

#include "weft/core/error.h"
#include "weft/io/files.h"

namespace weft::train {

SamplesFile::SamplesFile(std::string path) : path_(std::move(path)) {
  if (!io::file_exists(path_)) return;
  const std::string bytes = io::read_file(path_);
  size_ = bytes.size();
  for (size_t begin = 0; begin < bytes.size(); begin = whole_bytes_) {
    const size_t end = std::min(bytes.find('\n', begin), bytes.size());
    const std::string head = bytes.substr(begin, std::min<size_t>(end - begin, 80));
    long long step = 0;
    unsigned long long size = 0;
    int length = -1;
    if (std::sscanf(head.c_str(), "=== step %lld, %llu bytes%n", &step, &size, &length) != 2) break;
    const size_t text = end + 1;
    if (length != static_cast<int>(head.size()) || text > bytes.size()) break;
    if (size >= bytes.size() - text || bytes[text + size] != '\n') break;
    samples_.push_back({step, bytes.substr(text, size), begin});
    whole_bytes_ = text + size + 1;
  }
}

int64_t SamplesFile::count(int64_t step) const {
  return std::count_if(samples_.begin(), samples_.end(), [&](const Sample& s) { return s.step == step; });
}

void SamplesFile::add(int64_t step, const std::string& text) {
  const std::string bytes = str("=== step ", step, ", ", text.size(), " bytes\n", text, "\n");
  io::append_file(path_, bytes);
  samples_.push_back({step, text, size_});
  whole_bytes_ = size_ += bytes.size();
}

bool SamplesFile::rewind(int64_t step, int64_t num_wanted, const std::string& aside) {
  const int64_t last = count(step) < num_wanted ? step - 1 : step;
  auto first = std::find_if(samples_.begin(), samples_.end(), [&](const Sample& s) { return s.step > last; });
  const uint64_t end = first == samples_.end() ? whole_bytes_ : first->begin;
  if (end == size_) return false;
  io::make_folders(std::filesystem::path(aside).parent_path().string());
  io::append_file(aside, std::string_view(io::read_file(path_)).substr(end));
  io::cut_file(path_, end);
  samples_.erase(first, samples_.end());
  size_ = whole_bytes_ = end;
  return true;
}

}  // namespace weft::train
