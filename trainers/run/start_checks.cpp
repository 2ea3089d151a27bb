#include "trainers/run/start_checks.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>
#include <system_error>

#include "trainers/config/check.h"
#include "trainers/run/data_identity.h"
#include "trainers/run/session.h"
#include "weft/core/error.h"
#include "weft/data/shards.h"
#include "weft/io/files.h"

namespace weft::train {

namespace {

void check_readable(const std::string& path) {
  int descriptor = ::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  WEFT_CHECK(descriptor >= 0, str("cannot read ", path, ": ", std::strerror(errno)),
             "check the paths of the config's data");
  ::close(descriptor);
  WEFT_CHECK(!io::is_folder(path), str("cannot read ", path, ": it is a folder"),
             "name a file, or several by a pattern such as FOLDER/*.txt");
}

// Bytes of a text, or none where it is compressed or no file of a known size.
std::optional<int64_t> text_bytes(const std::string& path) {
  std::error_code error;
  const auto size = static_cast<int64_t>(std::filesystem::file_size(path, error));
  if (error) return {};
  std::ifstream file(path, std::ios::binary);
  if (size >= 2 && file.get() == 0x1f && file.get() == 0x8b) return {};  // gzip
  return size;
}

// That a source can give a row, as far as sizes say: a token has a byte or more, but for one that ends a file.
void check_size(const config::Loaded& config, const std::string& field, const std::string& pattern,
                const std::vector<std::string>& files, int64_t tokens) {
  int64_t most = 0, bytes = 0;
  for (const std::string& path : files) {
    const std::optional<int64_t> size = text_bytes(path);
    if (!size) return;
    bytes += *size, most += *size + 1;
  }
  if (bytes > 0 && most >= tokens) return;
  config::refuse(
      config, field,
      str("is ", pattern, ", ", files.size(), files.size() == 1 ? " file" : " files", " of ", bytes, " bytes; ", tokens,
          " tokens are needed, or more."),
      str("Give more text", tokens > 2 ? ", or a smaller model.context: a row is that and one token." : "."));
}

void check_has_text(const config::Loaded& config) {
  if (config.experiment.data().weights_only())
    config::refuse(
        config, "data.weights_only", "is true: there is no text to train on.",
        "Set data.weights_only=false, name data.train and data.val, and begin with these weights by start={from:RUN}.");
}

// A file that will be written later; it may be there.
void check_writable(const RunFolder& folder, const char* name) {
  const std::string path = folder.file(name);
  if (!io::file_exists(path)) return;
  WEFT_CHECK(!io::is_folder(path), str("run folder: ", path, " is a folder; a file of the run has that name"),
             "move it away, or choose another folder with --run");
  WEFT_CHECK(::access(path.c_str(), W_OK) == 0, str("run folder: cannot write ", path, ": ", std::strerror(errno)),
             "make it writable, or choose another folder with --run");
}

void check_folder(const RunFolder& folder, const char* name) {
  const std::string path = folder.file(name);
  if (!io::file_exists(path)) return;
  WEFT_CHECK(io::is_folder(path) && ::access(path.c_str(), W_OK | X_OK) == 0,
             str("run folder: ", path, " is no folder that can be written; the run needs one of that name"),
             "move it away or make it writable, or choose another folder with --run");
}

}  // namespace

void check_inputs(const config::Loaded& config) {
  const config::Data& d = config.experiment.data();
  check_has_text(config);
  const auto check_source = [&](const std::string& field, const std::string& pattern, int64_t tokens) {
    const std::vector<std::string> files = data::expand_path(pattern);
    for (const std::string& path : files) check_readable(path);
    check_size(config, field, pattern, files, tokens);
  };
  const int64_t of_row = config.experiment.model().context() + 1;
  for (int i = 0; i < d.train_size(); ++i) check_source(str("data.train[", i, "].path"), d.train(i).path(), of_row);
  if (d.val().has_path()) check_source("data.val.path", d.val().path(), 2);
  const config::Tokenizer& tokenizer = d.tokenizer();
  if (tokenizer.has_bpe()) check_readable(tokenizer.bpe().file());
  if (!tokenizer.has_gpt2()) return;
  for (const std::string& path : {tokenizer.gpt2().vocab(), tokenizer.gpt2().merges()}) check_readable(path);
}

void check_files(const config::Loaded& config, const RunFolder& folder) {
  const config::Experiment& e = config.experiment;
  check_has_text(config);
  const bool keeps_files = e.data().keep_files() && folder.existed();
  const auto kept = keeps_files ? read_data_identity(folder.path()) : nullptr;
  auto check_source = [&](const std::string& name, const std::string& pattern) {
    for (const std::string& path : kept ? files_of(*kept, name) : data::expand_path(pattern)) check_readable(path);
  };
  for (int i = 0; i < e.data().train_size(); ++i) check_source(str("data.train[", i, "]"), e.data().train(i).path());
  if (e.data().val().has_path()) check_source("data.val", e.data().val().path());
  for (const char* name : {"samples.txt", "report.html", "metrics.jsonl"}) check_writable(folder, name);
  for (const char* name : {"checkpoints", "set-aside"}) check_folder(folder, name);
  if (e.log().has_trace_step()) check_folder(folder, "trace");
}

std::vector<int32_t> checked_prompt(const config::Loaded& config, const RunData& data) {
  const config::Log& log = config.experiment.log();
  std::vector<int32_t> ids;
  try {
    ids = prompt_ids(data, log.sample_prompt());
  } catch (const Error& error) {
    config::refuse(config, "log.sample_prompt", "cannot be tokenised: " + error.problem(), error.fix());
  }
  const int64_t room = config.experiment.model().context() - (data.first_token ? 1 : 0);
  if (!log.sample_prompt().empty() && static_cast<int64_t>(ids.size()) > room)
    config::refuse(config, "log.sample_prompt",
                   str("has ", ids.size(), " tokens; the context has room for ", room, "."), "Shorten the prompt.");
  return ids;
}

}  // namespace weft::train
