// weft eval RUN [path=value]... [--lengths 1024,4096] [--ranks N]: validation loss of a run's checkpoint.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "trainers/command/arguments.h"
#include "trainers/command/command.h"
#include "trainers/command/stored_result.h"
#include "trainers/config/config_error.h"
#include "trainers/config/translate.h"
#include "trainers/console/console.h"
#include "trainers/run/address.h"
#include "trainers/run/evaluate.h"
#include "trainers/run/rank_launch.h"
#include "trainers/run/session.h"
#include "trainers/run/team.h"
#include "weft/core/error.h"
#include "weft/trainers/cli.h"

namespace weft::cli {

namespace {

struct Options {
  ConfigArguments run;
  std::vector<int64_t> lengths;
  int ranks = 1;
};

nlohmann::ordered_json to_json(const Evaluation& e, int64_t length) {
  nlohmann::ordered_json row{{"length", length}};
  if (e.has_targets()) row.update({{"loss", e.loss()}, {"loss_se", e.standard_error}, {"ppl", e.perplexity()}});
  if (e.num_bytes > 0) row["bpb"] = e.bits_per_byte();
  row["targets"] = e.num_targets;
  return row;
}

// Of ranks that share the windows: as many context ranks as the config has, and data ranks to fill the rest.
train::ParallelOptions mesh_of(const config::Loaded& config, int ranks, const std::string& started_by) {
  train::ParallelOptions mesh = train::parallel_options(config.experiment);
  if (ranks % mesh.context != 0)
    throw config::ConfigError(str(started_by, ": the run has parallel.context=", mesh.context,
                                  ", ranks that share each sequence, which do not divide ", ranks, "."),
                              str("Use a multiple of ", mesh.context, ", or parallel.context=", ranks, " or 1."));
  mesh.data = ranks / mesh.context;
  return mesh;
}

void check(const Options& options, const config::Loaded& config) {
  for (int64_t length : options.lengths) {
    if (length < 1)
      throw config::ConfigError(fmt::format("--lengths {}: not a length.", length), "Use lengths of 1 token or more.");
    if (config.experiment.model().position().has_learned() && length > config.experiment.model().context())
      throw config::ConfigError(fmt::format("--lengths {}: the model has learned positions for {} tokens.", length,
                                            config.experiment.model().context()),
                                "Use lengths between 1 and the training context.");
  }
}

// On every rank; the first one speaks.
int evaluate_run(const Options& options, const config::Loaded& config, dist::Communicator* world, Console& console) {
  std::optional<train::Team> team;
  if (world) team.emplace(*world, mesh_of(config, world->size(), "eval"));
  const bool speaks = !team || team->leads();
  Console silent(Verbosity::quiet, false);
  train::LoadedRun run =
      train::load_on_ranks(options.run.file(), options.run.overrides(), speaks ? console : silent, config, world);
  WEFT_CHECK(run.data.validation, "eval: the run's config names no validation data",
             "add data.val.path=FILE after the run");
  const auto& e = run.config.experiment;
  std::vector<int64_t> lengths = options.lengths.empty() ? std::vector<int64_t>{e.model().context()} : options.lengths;
  auto rows = nlohmann::ordered_json::array();
  std::string text;
  for (int64_t length : lengths) {
    const Evaluation result =
        train::validate(*run.model, run.data,
                        {.length = length,
                         .batch = std::max<int64_t>(1, e.train().micro_batch() * e.model().context() / length),
                         .attention = train::attention_backend(e)},
                        team ? &*team : nullptr);
    rows.push_back(to_json(result, length));
    text += fmt::format("length {}: {} ({} targets)\n", length, result.text(), result.num_targets);
  }
  if (!speaks) return kSuccess;
  nlohmann::ordered_json out{{"run", run.folder}, {"step", run.step}, {"validation", rows}};
  if (!run.warning.empty()) out["warning"] = run.warning;
  std::vector<std::string> arguments = options.run.overrides();
  if (lengths != std::vector<int64_t>{e.model().context()})
    arguments.push_back(fmt::format("--lengths {}", fmt::join(lengths, ",")));
  const std::string name = result_name(fmt::format("step-{:08}", run.step), arguments);
  print_and_store(console, std::move(out), text, run.folder, name, arguments);
  return kSuccess;
}

int run(const Options& options, Console& console, const Extensions& extensions) {
  config::Loaded config;
  auto prepare = [&] {
    config = train::config_of_run(options.run.file(), options.run.overrides(), extensions);
    check(options, config);
    return train::RankLaunch{.config = &config,
                             .folder = train::find_run(options.run.file()).folder + "/eval",
                             .check = [&](int ranks, const std::string& started_by) {
                               if (ranks > 1) mesh_of(config, ranks, started_by);
                             }};
  };
  return train::run_on_ranks(console, options.ranks, prepare,
                             [&](dist::Communicator* world) { return evaluate_run(options, config, world, console); });
}

}  // namespace

Action define_eval(Arguments& app) {
  auto options = std::make_shared<Options>();
  options->run.add_run(app);
  app.add_option("--lengths", options->lengths, "Lengths of the windows; default the training context")
      .delimiter(',')
      .one_word()
      .type_name("N,N")
      .takes_size();
  app.add_option("--ranks", options->ranks, "Ranks that share the windows, as threads").type_name("N");
  return [options](Console& console, const Extensions& extensions) { return run(*options, console, extensions); };
}

}  // namespace weft::cli
