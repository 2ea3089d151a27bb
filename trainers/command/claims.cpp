// weft claims GRID... [--runs DIR] [--keep DIR]: the page of what studies make of papers' claims. The reports of the studies are read, no run
// is opened.
#include <filesystem>

#include "trainers/command/arguments.h"
#include "trainers/command/command.h"
#include "trainers/config/config_error.h"
#include "trainers/console/console.h"
#include "trainers/study/claims_page.h"
#include "weft/io/files.h"
#include "weft/trainers/cli.h"

namespace weft::cli {

namespace {

struct Options {
  std::vector<std::string> grids;
  std::string runs = "studies", kept;
};

// Grids with claims: those that are named, and those in folders.
std::vector<study::Grid> grids_of(const std::vector<std::string>& names) {
  std::vector<study::Grid> grids;
  for (const std::string& name : names) {
    if (!io::is_folder(name)) {
      grids.push_back(study::read_grid(name));
      if (grids.back().claims.empty())
        throw config::ConfigError(name + ": has no claims.", "Leave it out, or add claim { .. } to the grid.");
      continue;
    }
    const size_t before = grids.size();
    for (const std::string& file : io::list_folder(name)) {
      if (!file.ends_with(".txtpb")) continue;
      study::Grid grid = study::read_grid((std::filesystem::path(name) / file).string());
      if (!grid.claims.empty()) grids.push_back(std::move(grid));
    }
    if (grids.size() == before)
      throw config::ConfigError(name + ": no grid in this folder has claims.",
                                "Name a folder of grids with claim { .. }.");
  }
  return grids;
}

int run(const Options& options, Console& console) {
  const std::vector<study::Grid> grids = grids_of(options.grids);
  if (options.kept.empty() && !io::is_folder(options.runs))
    throw config::ConfigError("weft claims: --runs " + options.runs + " is no folder, and no study was read.",
                              "Name the folder that holds the studies' folders, or add --keep DIR to read the numbers "
                              "that were kept.");
  const std::string command = "weft claims " + config::join(options.grids, " ") + " --runs DIR" +
                              (options.kept.empty() ? "" : " --keep " + options.kept);
  const study::ClaimsPage page = study::claims_page(grids, {options.runs, options.kept}, command);
  console.result(console.is_json() ? page.json : page.text);
  return kSuccess;
}

}  // namespace

Action define_claims(Arguments& app) {
  auto options = std::make_shared<Options>();
  app.add_option("GRID", options->grids, "Grids with claims, or folders of such").required().type_name("GRID");
  app.add_option("--runs", options->runs, "Folder that holds the folder of each study")
      .capture_default_str()
      .type_name("DIR");
  app.add_option("--keep", options->kept,
                 "Folder of small files with the numbers of complete studies: written from --runs, read where that "
                 "lacks a study")
      .type_name("DIR");
  return [options](Console& console, const Extensions&) { return run(*options, console); };
}

}  // namespace weft::cli
