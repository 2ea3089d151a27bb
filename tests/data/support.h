// What the data tests share: a folder of their own, files, the shared real files, and expected errors.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <sstream>
#include <string>
#include <string_view>

#include "weft/core/error.h"

namespace weft::test {

// A fresh folder, removed at the end of the scope.
class TempFolder {
 public:
  TempFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "weft_data_XXXXXX").string();
    path_ = ::mkdtemp(pattern.data());
  }
  ~TempFolder() {
    std::error_code code;
    std::filesystem::remove_all(path_, code);
  }
  std::string operator/(std::string_view name) const { return path_ + "/" + std::string(name); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

inline void write_bytes(const std::string& path, std::string_view content) {
  std::ofstream(path, std::ios::binary).write(content.data(), static_cast<std::streamsize>(content.size()));
}

inline std::string read_bytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream content;
  content << file.rdbuf();
  return content.str();
}

// Folder of the shared real files, or "" if there is none.
inline std::string shared_data() {
  if (const char* folder = std::getenv("WEFT_SHARED_DATA")) return folder;
  std::filesystem::path source = std::filesystem::path(WEFT_SOURCE_DIR);
  // A checkout stands beside shared/, or one folder deeper.
  for (const char* up : {"..", "../.."}) {
    std::filesystem::path folder = source / up / "shared" / "data";
    std::error_code code;
    if (std::filesystem::is_directory(folder, code)) return std::filesystem::weakly_canonical(folder).string();
  }
  return "";
}

#define WEFT_NEED_SHARED(name)                                          \
  std::string shared_file = ::weft::test::shared_data() + "/" + (name); \
  if (!std::filesystem::exists(shared_file))                            \
  GTEST_SKIP() << "no real file " << (name) << ": set WEFT_SHARED_DATA to the folder that holds it"

// f() must throw an Error whose text holds every part.
template <class F>
void expect_error(F&& f, std::initializer_list<std::string_view> parts) {
  try {
    f();
    ADD_FAILURE() << "no error; expected one with \"" << *parts.begin() << "\"";
  } catch (const Error& error) {
    for (std::string_view part : parts)
      EXPECT_NE(std::string_view(error.what()).find(part), std::string_view::npos) << "missing \"" << part << "\" in:\n"
                                                                                   << error.what();
    EXPECT_FALSE(error.fix().empty());
  }
}

}  // namespace weft::test
