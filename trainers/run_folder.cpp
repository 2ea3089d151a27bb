#include "trainers/run_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <ctime>

#include "trainers/environment.h"
#include "weft/core/error.h"
#include "weft/io/files.h"

namespace weft::train {

namespace {

int open_or_fail(const std::string& path, int flags, std::string_view what) {
  int descriptor = ::open(path.c_str(), flags | O_CLOEXEC, 0644);
  WEFT_CHECK(descriptor >= 0, str("run folder: cannot open ", what, " ", path, ": ", std::strerror(errno)),
             "choose a folder that can be written with --run");
  return descriptor;
}

}  // namespace

const std::vector<std::string>& resumable_fields() {
  static const std::vector<std::string>& fields =
      *new std::vector<std::string>{"train.max_seconds", "log", "checkpoint", "eval.every"};
  return fields;
}

RunFolder::RunFolder(std::string path, const config::Experiment& experiment, const std::vector<std::string>& overrides)
    : path_(std::move(path)), config_text_(config::to_text(experiment)) {
  io::make_folders(path_);
  lock_ = open_or_fail(file("lock"), O_CREAT | O_RDWR, "the lock");
  if (flock(lock_, LOCK_EX | LOCK_NB) != 0) {
    ::close(lock_);
    fail(str("run folder ", path_, " is in use by another process"),
         "wait for it, or choose another folder with --run");
  }
  // A start that failed before its first metric (a wrong path, say) left a config that binds nobody.
  existed_ = io::file_exists(file("config.txtpb")) &&
             (io::file_exists(file("metrics.jsonl")) || io::file_exists(file("checkpoints")));
  if (existed_) {
    config::require_same(experiment, path_, resumable_fields());
  } else {
    io::write_file_atomically(file("overrides.txt"), [&] {
      std::string text;
      for (const std::string& line : overrides) text += line + "\n";
      return text;
    }());
    io::write_file_atomically(file("environment.txtpb"), environment_text(experiment.seed()));
    io::write_file_atomically(file("config.txtpb"), config_text_);  // last: a folder with it is a run
  }
  log_ = open_or_fail(file("log.txt"), O_CREAT | O_WRONLY | O_APPEND, "the log");
}

RunFolder::~RunFolder() {
  if (log_ >= 0) ::close(log_);
  if (lock_ >= 0) ::close(lock_);
}

void RunFolder::log(std::string_view line) {
  char stamp[32];
  std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  std::strftime(stamp, sizeof stamp, "%Y-%m-%dT%H:%M:%SZ ", &utc);
  std::string text = stamp + std::string(line) + "\n";
  // The log is for people: a full disk here must not end a run that can still train.
  [[maybe_unused]] ssize_t written = ::write(log_, text.data(), text.size());
}

}  // namespace weft::train
