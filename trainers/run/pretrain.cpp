#include "trainers/run/pretrain.h"

#include "trainers/console/stop_signal.h"
#include "trainers/run/address.h"
#include "trainers/run/session.h"
#include "trainers/run/start_checks.h"
#include "trainers/run/team.h"
#include "trainers/run/training_run.h"
#include "weft/core/error.h"
#include "weft/io/checkpoint.h"
#include "weft/io/files.h"
#include "weft/trainers/cli.h"

namespace weft::train {

namespace {

// The folder of the checkpoint that --resume names; "auto" and "never" as they are.
std::string named_checkpoint(const std::string& name, cli::Console& console) {
  if (name == "auto" || name == "never") return name;
  const std::string words[] = {"auto", "never"};
  std::string near = config::nearest(name, words);
  if (!io::file_exists(name) && !near.empty() && name.find('@') == std::string::npos)
    throw config::ConfigError(str("--resume ", name, ": no such checkpoint. Did you mean '", near, "'?"),
                              "Use auto, never, RUN@STEP, RUN@best, RUN@latest, or a checkpoint's folder.");
  const RunAddress found = find_run(name);
  if (!found.checkpoint.empty()) return found.checkpoint;
  std::vector<std::string> messages;
  auto newest = io::find_latest_checkpoint(found.folder + "/checkpoints", messages);
  for (const std::string& message : messages) console.message(message);
  return newest.value();  // find_run has seen that there is one
}

// The rank that leads, or the only one.
int lead(cli::Console& console, const PretrainArguments& arguments, const config::Loaded& config,
         const std::string& path, Team* team) {
  RunFolder folder(path, config.experiment, arguments.overrides);
  StopSignal signals(console.verbosity() != cli::Verbosity::quiet);
  try {
    check_files(config, folder);
    const std::string resume = named_checkpoint(arguments.resume, console);
    if (resume != "auto" && resume != "never") io::read_checkpoint_info(resume);
    TrainingRun run(console, config, folder, team);
    run.resume(resume);
    return run.train();
  } catch (const Stopped&) {
    console.message(str("stopped before the first step (", StopSignal::name(), "); the same command continues"));
    return cli::kStopped;
  } catch (const std::exception& error) {
    folder.require_present();  // otherwise that is the reason, whatever was missing first
    folder.log(str("error: ", error.what()));
    throw;
  }
}

}  // namespace

int pretrain(cli::Console& console, const PretrainArguments& arguments) {
  config::Loaded config = config::load(arguments.config_file, arguments.overrides);
  config.own = arguments.own;
  check_ranks(config, arguments.ranks);
  apply_process_settings(config.experiment);
  const std::string path = arguments.run_folder.empty() ? "runs/" + config.experiment.name() : arguments.run_folder;
  if (arguments.ranks == 1) return lead(console, arguments, config, path, nullptr);
  // A thread does not die alone, and waits while the first rank validates and writes: so long is no sign of a fault.
  constexpr double kTimeoutS = 7 * 86400.0;
  const config::Train& train = config.experiment.train();
  int exit_code = cli::kSuccess;
  dist::run_thread_ranks(
      arguments.ranks,
      [&](dist::Communicator& world) {
        apply_rank_settings(config.experiment);
        Team team(world, parallel_options(config.experiment));
        if (!team.leads()) return follow(team, config, path);
        exit_code = lead(console, arguments, config, path, &team);
        team.tell(Duty::end);
      },
      {.timeout_s = kTimeoutS, .threads_per_rank = train.has_threads() ? static_cast<int>(train.threads()) : 0});
  return exit_code;
}

}  // namespace weft::train
