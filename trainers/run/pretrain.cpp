#include "trainers/run/pretrain.h"

#include "trainers/config/check.h"
#include "trainers/console/stop_signal.h"
#include "trainers/run/address.h"
#include "trainers/run/environment.h"
#include "trainers/run/folder.h"
#include "trainers/run/rank_launch.h"
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

int run_rank(cli::Console& console, const PretrainArguments& arguments, const config::Loaded& given,
             const std::string& path, dist::Communicator& world) {
  const ContextChoice choice = choose_context(given, rank_machine(world));
  const config::Loaded config = with_choice(given, choice);
  Team team(world, choice);
  if (!team.leads()) {
    StopSignal ignored(false);  // the first rank hears it too, and ends the training on all
    follow(team, config, path);
    return cli::kSuccess;
  }
  const int exit_code = lead(console, arguments, config, path, &team);
  team.tell(Duty::end);
  return exit_code;
}

}  // namespace

int pretrain(cli::Console& console, const PretrainArguments& arguments) {
  config::Loaded config;
  std::string path;
  auto prepare = [&] {
    config = config::read(arguments.config_file, arguments.overrides);
    config.own = arguments.own;
    path = arguments.run_folder.empty() ? "runs/" + config::name_of(config) : arguments.run_folder;
    const bool goes_on = has_begun(path);
    if (goes_on) config::keep_step(config, path);
    config::resolve(config);
    if (!goes_on) config::check_end_of_text(config);
    if (is_first_process()) working_commit();  // for the run's folder, before MPI starts
    return RankLaunch{.config = &config, .folder = path, .check = [&](int ranks, const std::string& started_by) {
                        check_ranks(config, ranks, started_by);
                        choose_context(config, {});  // before anything is begun
                      }};
  };
  return run_on_ranks(console, arguments.ranks, prepare, [&](dist::Communicator* world) {
    return world ? run_rank(console, arguments, config, path, *world) : lead(console, arguments, config, path, nullptr);
  });
}

}  // namespace weft::train
