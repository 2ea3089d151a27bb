// weft analyse RUN [path=value]... [--rows N]: importance of heads and the loss without them, rank collapse, secondary sinks, rollout and flow
// of attention, spread of a change, on validation rows of a run's newest checkpoint.
#include <fmt/format.h>

#include <CLI/App.hpp>
#include <nlohmann/json.hpp>

#include "trainers/commands/command.h"
#include "trainers/commands/stored_result.h"
#include "trainers/console.h"
#include "trainers/evaluate.h"
#include "trainers/session.h"
#include "weft/trainers/cli.h"

namespace weft::cli {

namespace {

struct Options {
  ConfigArguments run;
  int64_t rows = 8;
};

int run(const Options& options, Console& console, const Extensions& extensions) {
  train::LoadedRun run = train::load_run(options.run.file(), options.run.overrides(), console, extensions.mixers);
  auto values = weft::analyse(*run.model, train::analysis_rows(run.data, run.model->options().context, options.rows));
  nlohmann::ordered_json figures = nlohmann::ordered_json::object();
  std::string text;
  for (const auto& [name, value] : values) {
    figures[name] = value;
    text += fmt::format("{:<48} {:.6g}\n", name, value);
  }
  nlohmann::ordered_json out{{"run", options.run.file()}, {"step", run.step}, {"values", figures}};
  if (!run.warning.empty()) out["warning"] = run.warning;
  print_and_store(console, out, text, options.run.file(), fmt::format("analysis-{:08}.json", run.step));
  return kSuccess;
}

}  // namespace

Action define_analyse(CLI::App& app) {
  auto options = std::make_shared<Options>();
  options->run.add(app, true);
  app.add_option("--rows", options->rows, "Validation rows that the loss without heads is taken on")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str()
      ->type_name("N");
  return [options](Console& console, const Extensions& extensions) { return run(*options, console, extensions); };
}

}  // namespace weft::cli
