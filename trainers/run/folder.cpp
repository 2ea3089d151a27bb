#include "trainers/run/folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <ctime>
#include <optional>

#include "trainers/run/environment.h"
#include "weft/core/error.h"
#include "weft/io/checkpoint.h"
#include "weft/io/files.h"

namespace weft::train {

namespace {

int open_or_fail(const std::string& path, int flags, std::string_view what) {
  int descriptor = ::open(path.c_str(), flags | O_CLOEXEC, 0644);
  WEFT_CHECK(descriptor >= 0, str("run folder: cannot open ", what, " ", path, ": ", std::strerror(errno)),
             "choose a folder that can be written with --run");
  return descriptor;
}

bool has_bytes(const std::string& path) {
  struct stat info {};
  return ::stat(path.c_str(), &info) == 0 && info.st_size > 0;
}

// Files that a killed process was writing aside.
void remove_partial_files(const RunFolder& folder) {
  for (const char* name :
       {"config.txtpb", "overrides.txt", "environment.txtpb", "start.txtpb", "report.html", "metrics.jsonl"})
    io::remove_folder(folder.file(name) + ".partial");
  io::remove_partial_checkpoints(folder.file("checkpoints"));
}

// Sequences that all ranks have at a time: what the numbers of a step depend on.
int64_t at_a_time(const config::Experiment& e) { return e.train().micro_batch() * e.parallel().data(); }

// Of a run that goes on with other sequences at a time.
std::string remark_on(const config::Experiment& stored, const config::Experiment& now) {
  const int64_t before = at_a_time(stored), data = now.parallel().data();
  if (before == at_a_time(now)) return "";
  const std::string fitting =
      before % data == 0 ? str("train.micro_batch=", before / data, " with parallel.data=", data, " keeps them")
                         : str("train.micro_batch x parallel.data = ", before, " would keep them");
  return str("warning: the ranks have ", at_a_time(now), " sequences at a time now (train.micro_batch ",
             now.train().micro_batch(), " x parallel.data ", data, "), and had ", before,
             " when the run began: means over a micro-batch, such as balance losses, change; ", fitting);
}

}  // namespace

const std::vector<std::string>& resumable_fields() {
  static const std::vector<std::string>& fields = *new std::vector<std::string>{
      "train.max_seconds", "train.memory_gib", "data.keep_files", "log",
      "checkpoint",        "eval.every",       "parallel",        "optim.skip.max_in_a_row"};
  return fields;
}

bool has_begun(const std::string& run_folder) {
  return has_bytes(run_folder + "/metrics.jsonl") || !io::list_checkpoints(run_folder + "/checkpoints").empty();
}

RunFolder::RunFolder(std::string path, const config::Experiment& experiment, const std::vector<std::string>& overrides,
                     const std::vector<std::pair<std::string, std::string>>& files)
    : path_(std::move(path)), config_text_(config::to_text(experiment)) {
  io::make_folders(path_);
  folder_ = open_or_fail(path_, O_RDONLY | O_DIRECTORY, "the folder");
  lock_ = open_or_fail(file("lock"), O_CREAT | O_RDWR, "the lock");
  if (flock(lock_, LOCK_EX | LOCK_NB) != 0) {
    ::close(lock_);
    ::close(folder_);
    fail(str("run folder ", path_, " is in use by another process"),
         "wait for it, or choose another folder with --run");
  }
  const bool has_config = io::file_exists(file("config.txtpb"));
  existed_ = has_config && has_begun(path_);
  has_failed_start_ = has_config && !existed_;
  if (existed_) {
    // m sequences on each of D data ranks are m D on one.
    config::Experiment same = experiment;
    if (const std::optional<config::Experiment> stored = config::stored_experiment(path_);
        stored && stored->parallel().data() != experiment.parallel().data()) {
      same.mutable_train()->set_micro_batch(stored->train().micro_batch());
      remark_ = remark_on(*stored, experiment);
    }
    config::require_same(same, path_, resumable_fields());
    remove_partial_files(*this);
  } else {
    io::write_file_atomically(file("overrides.txt"), [&] {
      std::string text;
      for (const std::string& line : overrides) text += line + "\n";
      return text;
    }());
    io::write_file_atomically(file("environment.txtpb"), environment_text(experiment.seed()));
    for (const auto& [name, text] : files) io::write_file_atomically(file(name), text);
    io::write_file_atomically(file("config.txtpb"), config_text_);  // last: a folder with it is a run
  }
  log_ = open_or_fail(file("log.txt"), O_CREAT | O_WRONLY | O_APPEND, "the log");
}

RunFolder::~RunFolder() {
  if (log_ >= 0) ::close(log_);
  if (lock_ >= 0) ::close(lock_);
  if (folder_ >= 0) ::close(folder_);
}

void RunFolder::require_present() const {
  struct stat open {
  }, named{};
  bool is_there = ::fstat(folder_, &open) == 0 && ::stat(path_.c_str(), &named) == 0 && open.st_dev == named.st_dev &&
                  open.st_ino == named.st_ino;
  WEFT_CHECK(is_there, str("run folder ", path_, " was removed or moved while the run writes to it"),
             "if it was moved, the same command with --run and its new place continues from its last checkpoint");
}

std::string RunFolder::set_aside(const std::string& name) const {
  io::make_folders(file("set-aside"));
  const std::string path = file("set-aside/" + name);
  std::string place = path;
  for (int n = 2; io::file_exists(place); ++n) place = str(path, ".", n);
  io::rename_path(file(name), place);
  return place;
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
