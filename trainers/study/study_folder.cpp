#include "trainers/study/study_folder.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "src/core/file_lock.h"
#include "weft/core/error.h"
#include "weft/io/files.h"

namespace weft::study {

namespace {

namespace fs = std::filesystem;
using config::ConfigError;

std::string grid_file(const std::string& folder) { return folder + "/grid.txtpb"; }
std::string base_file(const std::string& folder) { return folder + "/base.txtpb"; }
// Where the grid stands: paths in its overrides are relative to it.
std::string place_file(const std::string& folder) { return folder + "/grid_folder.txt"; }

}  // namespace

StudyLock::StudyLock(const std::string& folder) : descriptor_(open_locked(folder + "/lock", 0)) {
  if (descriptor_ >= 0) return;
  const std::string why = errno == EWOULDBLOCK ? "another process works on this study."
                                               : str("cannot be locked: ", std::string_view(std::strerror(errno)), ".");
  throw ConfigError(folder + ": " + why, "Wait for it, or give this study --out of its own.");
}

StudyLock::~StudyLock() { ::close(descriptor_); }

void claim_folder(const std::string& folder, const Grid& grid) {
  const std::string file = grid_file(folder);
  if (io::file_exists(file) && io::read_file(file) != grid.text)
    throw ConfigError(str(folder, " holds the study of another grid than ", grid.file, "."),
                      "Give this one --out of its own, or write its text over " + file +
                          " to add to what is there: cells whose config is the same are not run again.");
  config::Experiment base = config::read(grid.base, {}).experiment;
  base.set_name(grid.name);  // of the study, which may be no more than the name of the grid's file
  io::write_file_atomically(base_file(folder), config::to_text(base));
  io::write_file_atomically(place_file(folder), fs::absolute(grid.file).parent_path().string() + "\n");
  if (!io::file_exists(file)) io::write_file_atomically(file, grid.text);
}

Grid stored_grid(const std::string& folder) {
  const std::string file = grid_file(folder), base = base_file(folder);
  if (!io::file_exists(file))
    throw ConfigError(str(folder, ": holds no study: there is no grid.txtpb."),
                      "Name the folder that weft ablate has written: studies/NAME, or the one of --out.");
  if (!io::file_exists(base))
    throw ConfigError(str(folder, ": has no base.txtpb, the config that its runs start from."),
                      str("Run weft ablate on its grid once more with --out ", folder, ", which writes it."));
  // Studies without that file are older than it, and their paths were relative to the working directory.
  std::string place =
      io::file_exists(place_file(folder)) ? io::read_file(place_file(folder)) : fs::current_path().string();
  while (place.ends_with('\n')) place.pop_back();
  Grid grid = read_grid(file, place);
  grid.base = base;
  grid.name = config::read(base, {}).experiment.name();
  return grid;
}

}  // namespace weft::study
