#include "trainers/study/study_folder.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <set>

#include "src/core/file_lock.h"
#include "trainers/config/grid.pb.h"
#include "trainers/config/text_reader.h"
#include "trainers/study/found_results.h"
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
// Studies without that file are older than it, and their paths were relative to the working directory.
std::string place_of(const std::string& folder) {
  if (!io::file_exists(place_file(folder))) return fs::current_path().string();
  std::string place = io::read_file(place_file(folder));
  while (place.ends_with('\n')) place.pop_back();
  return place;
}

// Takes the names in `more` that `kept` lacks out of it. False if some of `kept` are not there as they were.
template <class Repeated>
bool without_additions(const Repeated& kept, Repeated& more) {
  const auto text_of = [](const auto& one) {
    // Not in the wire format, which takes no bytes that are no UTF-8.
    if constexpr (requires { one.SerializeAsString(); }) return config::to_text(one);
    else return str(one);
  };
  std::set<std::string> missing;
  for (const auto& one : kept) missing.insert(text_of(one));
  for (const auto& one : more) missing.erase(text_of(one));
  more = kept;
  return missing.empty();
}

config::Grid message_of(const std::string& text, const std::string& name) {
  config::Grid grid;
  config::read_text(grid, text, {name, true, "", "/"}, nullptr);
  return grid;
}

std::vector<std::string> baseline_of(const Grid& grid) {
  std::vector<std::string> names;
  for (size_t a = 0; a < grid.axes.size(); ++a) names.push_back(grid.axes[a].arms[grid.baseline[a]].name);
  return names;
}

// Whether `grid` is that of the study in `file` with more seeds, or more arms on its axes, and nothing else: then every run of the study is one
// of its cells. What decides a claim stays as it was before the runs.
bool adds_alone(const Grid& grid, const std::string& file, const std::string& place) {
  const Grid old = read_grid(file, place);
  config::Grid kept = message_of(old.text, file), more = message_of(grid.text, grid.file);
  if (kept.claim_size() > 0 || kept.axis_size() != more.axis_size() ||
      overrides_in(old.text) != overrides_in(grid.text))
    return false;
  bool has_all = without_additions(kept.seeds(), *more.mutable_seeds());
  for (int a = 0; a < kept.axis_size(); ++a) {
    has_all = without_additions(kept.axis(a).arm(), *more.mutable_axis(a)->mutable_arm()) && has_all;
    has_all = without_additions(kept.axis(a).value(), *more.mutable_axis(a)->mutable_value()) && has_all;
  }
  kept.clear_base(), more.clear_base();  // where it stands; what it says is seen in the configs of the cells
  kept.clear_minutes(), more.clear_minutes();
  return has_all && baseline_of(old) == baseline_of(grid) && config::to_text(kept) == config::to_text(more);
}

// What the base config says is no part of the grid's text. If it says other things than that of the study did, finished runs would be left
// behind, and the report would be of none of them.
void require_same_base(const std::string& folder, const Grid& grid, const config::Experiment& base,
                       const std::vector<Cell>& cells) {
  if (!io::file_exists(base_file(folder))) return;  // a study that is older than this file
  std::string first;
  try {
    const auto found = differences_but_for_folders(config::read(base_file(folder), {}).experiment, base);
    if (found.empty()) return;
    const auto value = [](const std::string& text) { return text.empty() ? std::string("not set") : text; };
    first = str(" (", found[0].path, " was ", value(found[0].a), " and is ", value(found[0].b), ")");
  } catch (const ConfigError&) {}  // of a version that had other fields: the runs tell
  const int64_t others = num_finished_of_others(folder, cells) + num_finished_of_others(folder + "/tuning", cells);
  if (others > 0)
    throw ConfigError(str(folder, " holds ", others, others == 1 ? " finished run" : " finished runs",
                          " of another base config than ", grid.base, first, "."),
                      "Give this study --out of its own, or put the base config back as it was.");
}

}  // namespace

StudyLock::StudyLock(const std::string& folder) : descriptor_(open_locked(folder + "/lock", 0)) {
  if (descriptor_ >= 0) return;
  const std::string why = errno == EWOULDBLOCK ? "another process works on this study."
                                               : str("cannot be locked: ", std::string_view(std::strerror(errno)), ".");
  throw ConfigError(folder + ": " + why, "Wait for it, or give this study --out of its own.");
}

StudyLock::~StudyLock() { ::close(descriptor_); }

bool holds_grid(const std::string& folder, const Grid& grid) {
  const std::string file = grid_file(folder);
  return io::file_exists(file) && io::read_file(file) == grid.text;
}

void claim_folder(const std::string& folder, const Grid& grid, const std::vector<Cell>& cells) {
  const std::string file = grid_file(folder);
  const bool is_other = io::file_exists(file) && !holds_grid(folder, grid);
  if (is_other && !adds_alone(grid, file, place_of(folder)))
    throw ConfigError(str(folder, " holds the study of another grid than ", grid.file, "."),
                      "Give this one --out of its own. A grid without claims may get more seeds and more arms; to "
                      "change other things "
                      "of it, write its text over " +
                          file + ": cells whose config is the same are not run again.");
  config::Experiment base = config::read(grid.base, {}).experiment;
  require_same_base(folder, grid, base, cells);
  base.set_name(grid.name);  // of the study, which may be no more than the name of the grid's file
  io::write_file_atomically(base_file(folder), config::to_text(base));
  io::write_file_atomically(place_file(folder), fs::absolute(grid.file).parent_path().string() + "\n");
  if (!holds_grid(folder, grid)) io::write_file_atomically(file, grid.text);
}

Grid stored_grid(const std::string& folder) {
  const std::string file = grid_file(folder), base = base_file(folder);
  if (!io::file_exists(file))
    throw ConfigError(str(folder, ": holds no study: there is no grid.txtpb."),
                      "Name the folder that weft ablate has written: studies/NAME, or the one of --out.");
  if (!io::file_exists(base))
    throw ConfigError(str(folder, ": has no base.txtpb, the config that its runs start from."),
                      str("Run weft ablate on its grid once more with --out ", folder, ", which writes it."));
  Grid grid = read_grid(file, place_of(folder));
  grid.base = base;
  grid.name = config::read(base, {}).experiment.name();
  return grid;
}

}  // namespace weft::study
