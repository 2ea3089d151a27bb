// Starts the ranks of a command: threads of this process, or this process as one of those that a launcher started.
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "trainers/config/config.h"
#include "weft/comm/communicator.h"
#include "weft/comm/launch.h"

namespace weft::cli {
class Console;
}

namespace weft::train {

struct RankLaunch {
  const config::Loaded* config = nullptr;  // the same on all ranks, or it is an Error that names what differs
  std::string folder;                      // of flight records; it is made where there are several ranks
  // Throws unless the command can run on so many ranks. `started_by`: "--ranks 4" or "mpirun (Open MPI) started 4 ranks".
  std::function<void(int ranks, const std::string& started_by)> check;
};

// f(world) on every rank, with null where there is one rank only, started by a launcher or not; what the first rank returns. `prepare` is called
// once per process, before `check`. `asked`: of --ranks, which processes of a launcher refuse whatever its number. Whatever throws on a rank, one
// rank alone throws it here; the others return kFailure.
int run_on_ranks(cli::Console& console, std::optional<int> asked, const std::function<RankLaunch()>& prepare,
                 const std::function<int(dist::Communicator* world)>& f);

// How this process was started. What is wrong with that is a ConfigError, as a wrong command line is. `asked`: of --ranks.
dist::Launch this_launch(std::optional<int> asked = {});

// The first rank's text, on all. Every rank calls it.
std::string first_text(dist::Communicator& world, const std::string& text);

// Whether this process is the only one, or the first of a launcher's: it speaks before ranks have met, and does what they do not share.
bool is_first_process();

}  // namespace weft::train
