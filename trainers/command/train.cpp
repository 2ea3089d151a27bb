// weft train CONFIG [path=value]... [--run DIR] [--resume auto|never|CHECKPOINT] [--ranks N]
#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <optional>

#include "trainers/command/arguments.h"
#include "trainers/command/command.h"
#include "trainers/console/console.h"
#include "trainers/run/pretrain.h"
#include "weft/trainers/cli.h"

namespace weft::cli {

namespace {

struct Options {
  ConfigArguments config;
  std::string run_folder, resume = "auto";
  std::optional<int> ranks = {};
  int64_t parent = 0;
};

// A run of a study saves and stops when the study is killed, as if it had been sent SIGTERM itself.
void end_with(pid_t parent) {
  ::prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (::getppid() != parent) ::raise(SIGTERM);  // it died before
}

}  // namespace

Action define_train(Arguments& app) {
  auto options = std::make_shared<Options>();
  options->config.add(app, true);
  app.add_option("--run", options->run_folder, "Folder of the run; default runs/<name>").type_name("DIR");
  app.add_option(
         "--resume", options->resume,
         "auto: continue what the folder holds; never: refuse to; or go on from a checkpoint: RUN@STEP, RUN@best, "
         "RUN@latest, or its folder")
      .type_name("auto|never|CHECKPOINT");
  app.add_option("--ranks", options->ranks,
                 "Start this many ranks as threads: parallel.data x parallel.context of the config")
      .type_name("N");
  app.add_option("--with-parent", options->parent, "Process that this one stops with").hidden();
  return [options](Console& console, const Extensions& extensions) {
    if (options->parent > 0) end_with(static_cast<pid_t>(options->parent));
    return train::pretrain(console, {options->config.file(), options->config.overrides(), options->run_folder,
                                     options->resume, extensions, options->ranks});
  };
}

}  // namespace weft::cli
