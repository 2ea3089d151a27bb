// Which results of a study's folder are those of its cells, where paths or defaults have given a config another checksum.
#include "trainers/study/found_results.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>

#include <algorithm>
#include <filesystem>
#include <set>
#include <utility>

#include "trainers/config/config.h"
#include "trainers/config/schema.h"
#include "trainers/study/cells.h"
#include "weft/io/files.h"

namespace weft::study {

namespace {

namespace pb = google::protobuf;

// Of files the names alone: a folder may have been moved with all that is in it.
void strip_folders(pb::Message& message) {
  const pb::Reflection& reflection = *message.GetReflection();
  std::vector<const config::FieldDescriptor*> fields;
  reflection.ListFields(message, &fields);
  for (const config::FieldDescriptor* field : fields) {
    const bool is_message = field->cpp_type() == config::FieldDescriptor::CPPTYPE_MESSAGE;
    if (is_message && field->is_repeated())
      for (int i = 0; i < reflection.FieldSize(message, field); ++i)
        strip_folders(*reflection.MutableRepeatedMessage(&message, field, i));
    else if (is_message) strip_folders(*reflection.MutableMessage(&message, field));
    else if (config::facts(*field).is_path && !field->is_repeated())
      reflection.SetString(&message, field,
                           std::filesystem::path(reflection.GetString(message, field)).filename().string());
  }
}

// Whether a run was made with the config of the cell, but for folders of its files and for fields that are younger than the run.
bool is_of_config(const std::string& run_folder, const config::Experiment& meant) {
  const std::string file = run_folder + "/config.txtpb";
  if (!io::file_exists(file)) return false;
  try {
    return differences_but_for_folders(config::read(file, {}).experiment, meant).empty();
  } catch (const config::ConfigError&) { return false; }  // of a version that had other fields
}

// Cells in whose names the checksum alone is another one, and whose runs had this config.
std::vector<std::string> same_but_for_paths(const std::string& study_folder, const std::vector<std::string>& results,
                                            const Cell& cell) {
  const std::string ending = ".json";
  if (std::ranges::find(results, cell.folder + ending) != results.end()) return {};
  const size_t stem = cell.folder.rfind('-') + 1;  // behind it stands the checksum
  std::vector<std::string> found;
  for (const std::string& name : results)
    if (name.size() == cell.folder.size() + ending.size() && name.ends_with(ending) &&
        name.compare(0, stem, cell.folder, 0, stem) == 0)
      found.push_back(name.substr(0, cell.folder.size()));
  std::erase_if(
      found, [&](const std::string& name) { return !is_of_config(study_folder + "/cells/" + name, cell.experiment); });
  return found;
}

std::vector<std::string> names_of_results(const std::string& study_folder) {
  const std::string folder = study_folder + "/results";
  return io::is_folder(folder) ? io::list_folder(folder) : std::vector<std::string>();
}

}  // namespace

std::vector<config::Difference> differences_but_for_folders(config::Experiment a, config::Experiment b) {
  for (config::Experiment* one : {&a, &b}) {
    config::fill_presets(*one);
    one->clear_name();
    strip_folders(*one);
  }
  return config::differences(a, b);
}

int64_t num_finished_of_others(const std::string& study_folder, const std::vector<Cell>& cells) {
  const std::string ending = ".json";
  const std::vector<std::string> names = names_of_results(study_folder);
  std::set<std::string> own;
  for (const Cell& cell : cells) {
    own.insert(cell.folder);
    for (const std::string& name : same_but_for_paths(study_folder, names, cell)) own.insert(name);
  }
  int64_t count = 0;
  for (const std::string& name : names) {
    if (!name.ends_with(ending)) continue;
    Cell other;
    other.folder = name.substr(0, name.size() - ending.size());
    if (!own.contains(other.folder) && stored_result(study_folder, other)->state != CellResult::State::failed) ++count;
  }
  return count;
}

std::vector<std::optional<CellResult>> found_results(const std::string& study_folder, std::vector<Cell>& cells) {
  const std::vector<std::string> names = names_of_results(study_folder);
  std::vector<std::optional<CellResult>> results;
  for (Cell& cell : cells) {
    const std::vector<std::string> found = same_but_for_paths(study_folder, names, cell);
    if (found.size() > 1)
      throw config::ConfigError(
          str(study_folder, ": has ", found.size(), " results of ", cell.folder.substr(0, cell.folder.rfind('-')),
              ", which differ in paths or defaults alone: ", config::join(found, ", "), "."),
          "Run weft ablate on the grid again, which knows the one that is meant, or remove the "
          "others from results/ and cells/.");
    if (!found.empty()) cell.meant = std::exchange(cell.folder, found[0]);
    results.push_back(stored_result(study_folder, cell));
  }
  return results;
}

void take_over_complete(const std::string& study_folder, std::vector<Cell>& cells) {
  const std::vector<std::string> names = names_of_results(study_folder);
  for (Cell& cell : cells)
    for (const std::string& name : same_but_for_paths(study_folder, names, cell)) {
      Cell other = cell;
      other.meant = std::exchange(other.folder, name);
      const std::optional<CellResult> result = stored_result(study_folder, other);
      if (!result || result->state != CellResult::State::complete) continue;
      cell = other;
      break;
    }
}

}  // namespace weft::study
