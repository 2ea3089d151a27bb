// weft analyse RUN [path=value]... [--rows N] [--ranks N]: importance of heads and the loss without them, rank collapse, secondary sinks, rollout
// and flow of attention, spread of a change, on validation rows of a run's checkpoint; as tables, JSON and a picture.
#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <optional>

#include "trainers/command/arguments.h"
#include "trainers/command/command.h"
#include "trainers/command/stored_result.h"
#include "trainers/console/console.h"
#include "trainers/run/address.h"
#include "trainers/run/evaluate.h"
#include "trainers/run/rank_launch.h"
#include "trainers/run/run_mesh.h"
#include "trainers/run/session.h"
#include "trainers/run/team.h"
#include "trainers/run/value_pictures.h"
#include "weft/trainers/cli.h"

namespace weft::cli {

namespace {

struct Options {
  ConfigArguments run;
  int64_t rows = 8;
  std::optional<int> ranks = {};
};

// On every rank; the first one speaks.
int analyse_run(const Options& options, const config::Loaded& config, dist::Communicator* world, Console& console) {
  std::optional<train::Team> team;
  if (world) team.emplace(*world, train::run_choice(config, options.run.overrides(), *world));
  const bool speaks = !team || team->leads();
  Console silent(Verbosity::quiet, false);
  train::LoadedRun run =
      train::load_on_ranks(options.run.file(), options.run.overrides(), speaks ? console : silent, config, world);
  const AnalysisRows rows =
      train::analysis_rows(run.data, run.model->options().context, options.rows, team ? &*team : nullptr);
  auto values = weft::analyse(*run.model, rows, team ? &team->others() : nullptr);
  if (!speaks) return kSuccess;
  nlohmann::ordered_json figures = nlohmann::ordered_json::object();
  for (const auto& [name, value] : values) figures[name] = value;
  nlohmann::ordered_json out{{"run", run.folder}, {"step", run.step}, {"values", figures}};
  if (!run.warning.empty()) out["warning"] = run.warning;
  std::vector<std::string> arguments = options.run.overrides();
  if (options.rows != Options().rows) arguments.push_back(fmt::format("--rows {}", options.rows));
  const std::string name = result_name(fmt::format("analysis-{:08}", run.step), arguments);
  const std::string picture = draw_result(train::value_pictures(values), run.folder, name, console);
  if (!picture.empty()) out["picture"] = picture;
  print_and_store(console, std::move(out), train::value_tables(values), run.folder, name, arguments);
  return kSuccess;
}

int run(const Options& options, Console& console, const Extensions& extensions) {
  config::Loaded config;
  auto prepare = [&] {
    config = train::config_of_run(options.run.file(), options.run.overrides(), extensions);
    return train::RankLaunch{.config = &config,
                             .folder = train::find_run(options.run.file()).folder + "/eval",
                             .check = [&](int ranks, const std::string& started_by) {
                               if (ranks > 1) train::run_mesh(config, ranks, started_by);
                             }};
  };
  return train::run_on_ranks(console, options.ranks, prepare,
                             [&](dist::Communicator* world) { return analyse_run(options, config, world, console); });
}

}  // namespace

Action define_analyse(Arguments& app) {
  auto options = std::make_shared<Options>();
  options->run.add_run(app);
  app.add_option("--rows", options->rows, "Validation rows that the loss without heads is taken on")
      .range(int64_t{1}, int64_t{65536})
      .capture_default_str()
      .type_name("N")
      .takes_size();
  app.add_option("--ranks", options->ranks, "Ranks that share the forwards and rows, as threads").type_name("N");
  return [options](Console& console, const Extensions& extensions) { return run(*options, console, extensions); };
}

}  // namespace weft::cli
