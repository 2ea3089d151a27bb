// Where each value of a config came from, by concrete path: "study.txtpb:12:25" or the argument that set it.
#pragma once

#include <map>
#include <string>
#include <string_view>

namespace weft::config {

class Origins {
 public:
  explicit Origins(std::string file = "") : file_(std::move(file)) {}

  void set(const std::string& path, std::string origin) { by_path_[path] = std::move(origin); }

  // Forgets the path and everything below it.
  void forget(const std::string& path) {
    std::erase_if(by_path_, [&](const auto& entry) { return is_at_or_below(entry.first, path); });
  }

  // Of the path itself or of the nearest message around it; the file's name if none has one.
  std::string of(std::string path) const {
    while (true) {
      if (auto found = by_path_.find(path); found != by_path_.end()) return found->second;
      size_t cut = path.find_last_of(".[");
      if (cut == std::string::npos) return file_;
      path.resize(cut);
    }
  }

  bool has(const std::string& path) const { return by_path_.contains(path); }
  const std::string& file() const { return file_; }

 private:
  static bool is_at_or_below(std::string_view path, std::string_view top) {
    return path.starts_with(top) && (path.size() == top.size() || path[top.size()] == '.' || path[top.size()] == '[');
  }

  std::string file_;
  std::map<std::string, std::string> by_path_;
};

}  // namespace weft::config
