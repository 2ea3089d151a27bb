#include "trainers/run/pretrain.h"

#include "trainers/console/stop_signal.h"
#include "trainers/run/address.h"
#include "trainers/run/session.h"
#include "trainers/run/start_checks.h"
#include "trainers/run/team.h"
#include "trainers/run/training_run.h"
#include "weft/comm/launch.h"
#include "weft/core/error.h"
#include "weft/core/parallel.h"
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

// The first rank may validate and write for long, while the others wait for what it says.
constexpr double kThreadTimeoutS = 7 * 86400.0, kProcessTimeoutS = 3600;

int run_rank(cli::Console& console, const PretrainArguments& arguments, const config::Loaded& config,
             const std::string& path, dist::Communicator& world) {
  apply_rank_settings(config.experiment);
  world.record_to(path);
  Team team(world, parallel_options(config.experiment));
  if (!team.leads()) {
    StopSignal ignored(false);  // the first rank hears it too, and ends the training on all
    follow(team, config, path);
    return cli::kSuccess;
  }
  const int exit_code = lead(console, arguments, config, path, &team);
  team.tell(Duty::end);
  return exit_code;
}

int run_threads(cli::Console& console, const PretrainArguments& arguments, const config::Loaded& config,
                const std::string& path) {
  check_ranks(config, arguments.ranks, str("--ranks ", arguments.ranks));
  io::make_folders(path);
  const config::Train& train = config.experiment.train();
  int exit_code = cli::kSuccess;
  dist::run_thread_ranks(
      arguments.ranks,
      [&](dist::Communicator& world) {
        const int code = run_rank(console, arguments, config, path, world);
        if (world.rank() == 0) exit_code = code;
      },
      {.timeout_s = kThreadTimeoutS, .threads_per_rank = train.has_threads() ? static_cast<int>(train.threads()) : 0});
  return exit_code;
}

// This process is one of several ranks. One of them speaks, also of an error.
int run_process(cli::Console& console, const PretrainArguments& arguments, const config::Loaded& config,
                const std::string& path, const dist::Launch& launch) {
  const std::unique_ptr<dist::Communicator> world = dist::make_mpi_communicator({.timeout_s = kProcessTimeoutS});
  try {
    check_ranks(config, world->size(), str(to_string(launch.launcher), " started ", world->size(), " ranks"));
    if (!config.experiment.train().has_threads()) set_num_threads(launch.threads);
    if (world->rank() == 0)
      for (const std::string& warning : launch.warnings) console.message("warning: " + warning);
    io::make_folders(path);
    return run_rank(console, arguments, config, path, *world);
  } catch (const Error& error) {
    world->abort(error.problem());
    if (world->is_speaker()) throw;
  } catch (const std::exception& error) {
    world->abort(error.what());
    if (world->is_speaker()) throw;
  }
  return cli::kFailure;
}

}  // namespace

int pretrain(cli::Console& console, const PretrainArguments& arguments) {
  config::Loaded config = config::load(arguments.config_file, arguments.overrides);
  config.own = arguments.own;
  const dist::Launch launch =
      dist::detect_launch({.threads = arguments.ranks > 1 ? arguments.ranks : 0}, dist::environment());
  apply_process_settings(config.experiment);
  const std::string path = arguments.run_folder.empty() ? "runs/" + config.experiment.name() : arguments.run_folder;
  if (launch.uses_mpi()) return run_process(console, arguments, config, path, launch);
  if (arguments.ranks > 1) return run_threads(console, arguments, config, path);
  check_ranks(config, 1, "");
  return lead(console, arguments, config, path, nullptr);
}

}  // namespace weft::train
