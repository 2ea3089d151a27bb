#include "trainers/run/rank_launch.h"

#include <cctype>
#include <exception>

#include "trainers/console/console.h"
#include "trainers/console/last_words.h"
#include "trainers/run/session.h"
#include "weft/comm/nccl.h"
#include "weft/core/error.h"
#include "weft/core/parallel.h"
#include "weft/core/stream.h"
#include "weft/io/files.h"
#include "weft/ops/elementwise.h"

namespace weft::train {

namespace {

using cli::Console;
using RankFunction = std::function<int(dist::Communicator*)>;

// Of ranks that are processes, each of which has read its own command line and its own file.
void check_same_config(dist::Communicator& world, const config::Loaded& config) {
  config::Experiment first;
  first.ParseFromString(first_text(world, config.experiment.SerializeAsString()));
  const std::vector<config::Difference> differences = config::differences(first, config.experiment);
  if (!differences.empty()) {
    auto shown = [](const std::string& value) { return value.empty() ? std::string("not set") : value; };
    const config::Difference& d = differences[0];
    throw config::ConfigError(
        str("rank ", world.rank(), " has another config than rank 0: ", d.path, " is ", shown(d.b), " on rank ",
            world.rank(), " and ", shown(d.a), " on rank 0",
            differences.size() > 1 ? str(", and ", differences.size() - 1, " more differ") : "", "."),
        "Start every rank with the same command and the same file.");
  }
  world.barrier();  // nobody goes on before all have compared
}

// Of the launcher's choice of threads, or of the config's.
void warn_of_threads(Console& console, const dist::Launch& launch, const config::Train& train) {
  if (!train.has_threads()) {
    for (const std::string& warning : launch.warnings) console.message("warning: " + warning);
    return;
  }
  const int64_t ranks = launch.local_size, all = ranks * train.threads(), cores = dist::launch_means().cores;
  if (all <= cores) return;
  console.message(str("warning: ", ranks, " ranks on this host with ", train.threads(),
                      " threads each (train.threads): ", all, " threads on ", cores, " cores; ",
                      ranks > cores ? "use fewer ranks" : str("use train.threads=", cores / ranks)));
}

int run_threads(const RankLaunch& launch, int ranks, const RankFunction& f) {
  launch.check(ranks, str("--ranks ", ranks));
  io::make_folders(launch.folder);
  const config::Experiment& e = launch.config->experiment;
  int exit_code = cli::kSuccess;
  dist::run_thread_ranks(ranks,
                         [&](dist::Communicator& world) {
                           apply_rank_settings(e);
                           world.record_to(launch.folder);
                           const int code = f(&world);
                           if (world.rank() == 0) exit_code = code;
                         },
                         {.timeout_s = e.parallel().timeout_s(),
                          .threads_per_rank = e.train().has_threads() ? static_cast<int>(e.train().threads()) : 0});
  return exit_code;
}

// Where the config trains on a GPU, that of this process among those of its host. It is chosen before MPI or NCCL start.
void take_gpu(const dist::Launch& launch) {
  if (default_device().is_cuda() && !has_emulated_cuda())
    set_default_device(Device::cuda(dist::gpu_of(launch, num_cuda_devices())));
}

// What this process alone has found wrong is told by one rank, once all have met.
struct Prepared {
  RankLaunch launch = {};
  std::exception_ptr problem = nullptr;
  double timeout_s = 600;
};

void check_asked(std::optional<int> asked) {
  constexpr int kMost = 4096;  // each is a thread of this process, or of a process of its own
  if (asked && (*asked < 1 || *asked > kMost))
    throw config::ConfigError(str("--ranks ", *asked, ": there are no such ranks."), str("Use 1 to ", kMost, "."));
}

Prepared prepared(std::optional<int> asked, const dist::Launch& launch, const std::function<RankLaunch()>& prepare) {
  Prepared p;
  try {
    check_asked(asked);
    this_launch(asked);
    p.launch = prepare();
    p.timeout_s = p.launch.config->experiment.parallel().timeout_s();
    apply_process_settings(p.launch.config->experiment);
    take_gpu(launch);
  } catch (...) { p.problem = std::current_exception(); }
  return p;
}

int run_process(Console& console, const dist::Launch& launch, dist::Communicator& world, const Prepared& p,
                const RankFunction& f) {
  const LastWords words;
  try {
    if (p.problem) std::rethrow_exception(p.problem);
    check_same_config(world, *p.launch.config);
    p.launch.check(world.size(), str(to_string(launch.launcher), " started ", world.size(), " ranks"));
    if (!p.launch.config->experiment.train().has_threads()) set_num_threads(launch.threads);
    if (world.rank() == 0) warn_of_threads(console, launch, p.launch.config->experiment.train());
    if (world.size() == 1) return f(nullptr);  // as without a launcher
    io::make_folders(p.launch.folder);
    world.record_to(p.launch.folder);
    return f(&world);
  } catch (const Error& error) {
    world.abort(error.problem());
    if (world.is_speaker()) throw;
  } catch (const std::exception& error) {
    world.abort(error.what());
    if (world.is_speaker()) throw;
  }
  return cli::kFailure;
}

// Ranks of MPI with a GPU each are joined by NCCL too, which carries their tensors; MPI carries those of the CPU.
int run_on_gpus(dist::Communicator& ranks, const Prepared& p, const RankFunction& f) {
  if (default_device().is_cpu() || has_emulated_cuda() || !dist::has_nccl()) return f(&ranks);
  const auto world = dist::make_nccl_communicator(ranks, {.timeout_s = p.timeout_s, .device = default_device()});
  world->record_to(p.launch.folder);
  return f(world.get());
}

// Processes of torchrun or of srun without MPI.
void require_gpu(const dist::Launch& launch) {
  if (default_device().is_cuda()) return;
  const std::string why = cuda_problem();
  throw config::ConfigError(
      str("rank ", launch.rank, " of ", launch.launcher, " trains on the CPU", why.empty() ? "" : ", since " + why,
          ": processes without MPI are joined by NCCL, which needs a GPU for each."),
      "Start them by mpirun or srun --mpi, or one process with --ranks N; with GPUs use train.device=cuda.");
}

}  // namespace

dist::Launch this_launch(std::optional<int> asked) {
  try {
    return dist::detect_launch({.threads = asked.value_or(0)}, dist::environment());
  } catch (const Error& error) {
    std::string fix = error.fix() + ".";
    fix[0] = static_cast<char>(std::toupper(static_cast<unsigned char>(fix[0])));
    throw config::ConfigError(error.problem() + ".", fix);
  }
}

std::string first_text(dist::Communicator& world, const std::string& text) {
  auto send = [&](Tensor x) {
    x = ops::to(x, default_device());
    world.broadcast(x, 0);
    return x.cpu();
  };
  const auto length = static_cast<int64_t>(send(Tensor::from({static_cast<int64_t>(text.size())}, {1})).item());
  Tensor bytes = Tensor::zeros({length}, kU8, Device::cpu());
  if (world.rank() == 0) std::copy(text.begin(), text.end(), bytes.mutable_data<uint8_t>());
  const std::vector<uint8_t> all = send(bytes).to_vector<uint8_t>();
  return {all.begin(), all.end()};
}

int run_on_ranks(Console& console, std::optional<int> asked, const std::function<RankLaunch()>& prepare,
                 const RankFunction& f) {
  const dist::Launch launch = this_launch();
  if (launch.uses_mpi()) {
    const Prepared p = prepared(asked, launch, prepare);
    const auto world = dist::make_mpi_communicator({.timeout_s = p.timeout_s});
    return run_process(console, launch, *world, p,
                       [&](dist::Communicator* ranks) { return ranks ? run_on_gpus(*ranks, p, f) : f(nullptr); });
  }
  if (launch.size > 1) {  // of torchrun or srun, whose processes only NCCL joins
    const Prepared p = prepared(asked, launch, prepare);
    if (p.problem) std::rethrow_exception(p.problem);
    require_gpu(launch);
    const auto world = dist::make_nccl_communicator(launch.rendezvous, launch.rank, launch.size,
                                                    {.timeout_s = p.timeout_s, .device = default_device()});
    return run_process(console, launch, *world, p, f);
  }
  check_asked(asked);
  const RankLaunch alone = prepare();
  apply_process_settings(alone.config->experiment);
  if (asked.value_or(1) > 1) {
    warn_of_threads(console, this_launch(asked), alone.config->experiment.train());
    return run_threads(alone, *asked, f);
  }
  alone.check(1, "");
  return f(nullptr);
}

bool is_first_process() {
  // Also of launchers whose processes this build cannot join.
  return dist::detect_launch({}, dist::environment(), {.has_mpi = true, .has_nccl = true}).rank == 0;
}

}  // namespace weft::train
