#include "trainers/config/config.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "trainers/config/check.h"
#include "trainers/config/overrides.h"
#include "trainers/config/preset.h"
#include "trainers/config/text_reader.h"

namespace weft::config {

namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxFileBytes = size_t{1} << 20;

// The parser would find a curious character and call it that.
void check_text(const std::string& text, const std::string& file, const TextKind& kind) {
  for (size_t i = 0; i < text.size(); ++i) {
    auto byte = static_cast<unsigned char>(text[i]);
    bool is_text =
        byte >= 0x20 ? byte != 0x7F : byte == '\t' || byte == '\n' || byte == '\r' || byte == '\f' || byte == '\v';
    if (!is_text)
      throw ConfigError(str(file, ": is a binary file, not ", kind.name, ": byte ", i, " is ", int64_t{byte}, "."),
                        str("Name ", kind.name, " in protobuf text format, such as those in ", kind.examples, "."));
  }
  size_t first = text.find_first_not_of(" \t\r\n");
  if (first != std::string::npos && text[first] == '{')
    throw ConfigError(str(file, ": begins with '{' like JSON; ", kind.name, " is in protobuf text format."),
                      str("Write fields without outer braces and quotes: ", kind.field, "."));
}

}  // namespace

std::string read_text_file(const std::string& file, const TextKind& kind) {
  std::error_code code;
  if (fs::is_directory(file, code)) {
    bool is_run = fs::exists(fs::path(file) / "config.txtpb", code);
    throw ConfigError(
        str(file, ": is a folder, not a ", kind.short_name, " file."),
        is_run ? str("Name its ", (fs::path(file) / "config.txtpb").string(), ".") : "Name a .txtpb file.");
  }
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
    throw ConfigError(str(file, ": cannot be read: ", std::strerror(error), "."),
                      str("Check the path of the ", kind.short_name, "."));
  text.resize(size);
  if (text.size() > kMaxFileBytes)
    throw ConfigError(file + ": is larger than 1 MiB.", str("Name ", kind.name, " in text format."));
  check_text(text, file, kind);
  return text;
}

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
  return read_string(read_text_file(file, kConfigText), file, folder, overrides);
}

void resolve(Loaded& config) {
  expand_presets(config);
  fill_presets(config.experiment);
  check_fields(config);
  fill_derived(config);
  check_model(config);
  check_run(config);
  check_adapters(config);
}

Loaded load(const std::string& file, const std::vector<std::string>& overrides) {
  Loaded out = read(file, overrides);
  resolve(out);
  return out;
}

}  // namespace weft::config
