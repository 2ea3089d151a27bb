#include "trainers/config.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "trainers/overrides.h"
#include "trainers/preset.h"
#include "trainers/text_reader.h"

namespace weft::config {

namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxFileBytes = size_t{1} << 20;

std::string read_whole(const std::string& file) {
  std::error_code code;
  if (fs::is_directory(file, code))
    throw ConfigError(file + ": is a folder, not a config file.", "Name a .txtpb file.");
  // Any kind of file: a config may come from a pipe. An error while reading is no end of the file.
  int descriptor = ::open(file.c_str(), O_RDONLY | O_CLOEXEC);
  std::string text(kMaxFileBytes + 1, '\0');
  size_t size = 0;
  ssize_t count = descriptor < 0 ? -1 : 1;
  while (count > 0 && size < text.size()) {
    count = ::read(descriptor, text.data() + size, text.size() - size);
    if (count > 0) size += static_cast<size_t>(count);
    if (count < 0 && errno == EINTR) count = 1;
  }
  const int error = errno;
  if (descriptor >= 0) ::close(descriptor);
  if (count < 0)
    throw ConfigError(str(file, ": cannot be read: ", std::strerror(error), "."), "Check the path of the config.");
  text.resize(size);
  if (text.size() > kMaxFileBytes) throw ConfigError(file + ": is larger than 1 MiB.", "Name a config in text format.");
  return text;
}

}  // namespace

Loaded read_string(std::string_view text, const std::string& name, const std::string& folder,
                   const std::vector<std::string>& overrides) {
  Loaded out;
  out.origins = Origins(name);
  read_text(out.experiment, text, {name, true, "", folder}, &out.origins);
  std::string here = fs::current_path().string();
  for (const std::string& argument : overrides) apply_override(out.experiment, argument, here, &out.origins);
  return out;
}

Loaded read(const std::string& file, const std::vector<std::string>& overrides) {
  std::string folder = fs::absolute(file).parent_path().string();
  return read_string(read_whole(file), file, folder, overrides);
}

void resolve(Loaded& config) {
  expand_presets(config);
  fill_presets(config.experiment);
  check_fields(config);
  fill_derived(config);
  check_model(config);
  check_run(config);
}

Loaded load(const std::string& file, const std::vector<std::string>& overrides) {
  Loaded out = read(file, overrides);
  resolve(out);
  return out;
}

}  // namespace weft::config
