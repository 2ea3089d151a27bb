#include "weft/comm/launch.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <optional>

#include "weft/comm/communicator.h"
#include "weft/comm/nccl.h"
#include "weft/core/error.h"

extern char** environ;

namespace weft::dist {

namespace {

constexpr const char* kDefaultPort = "29500";
constexpr const char* kWays =
    "start it by mpirun with a build that has MPI, or by one process with --ranks N (threads)";

// A rank, or a number of ranks, and the variable that says so.
struct Said {
  std::string name;
  int value = 0;
};

class Variables {
 public:
  explicit Variables(const Environment& all) : all_(all) {}

  const std::string* text(const std::string& name) const {
    const auto found = all_.find(name);
    return found == all_.end() || found->second.empty() ? nullptr : &found->second;
  }
  bool has(const std::string& name) const { return text(name) != nullptr; }

  // The first of the variables that is set.
  std::optional<Said> number(std::initializer_list<const char*> names) const {
    for (const char* name : names) {
      const std::string* value = text(name);
      if (!value) continue;
      int result = 0;
      const auto [end, code] = std::from_chars(value->data(), value->data() + value->size(), result);
      WEFT_CHECK(code == std::errc() && end == value->data() + value->size() && result >= 0,
                 str(name, " is '", *value, "', not a number"), "unset it, or let the launcher set it");
      return Said{name, result};
    }
    return std::nullopt;
  }
  int number_or(std::initializer_list<const char*> names, int otherwise) const {
    const auto said = number(names);
    return said ? said->value : otherwise;
  }

 private:
  const Environment& all_;
};

void require_same(const std::optional<Said>& a, const std::optional<Said>& b) {
  if (!a || !b) return;
  WEFT_CHECK(a->value == b->value,
             str("two launchers disagree: ", a->name, " is ", a->value, ", ", b->name, " is ", b->value),
             "start the program by one launcher, and unset the variables of the other");
}

void require_rank_in_size(const Said& rank, const Said& size) {
  WEFT_CHECK(size.value >= 1 && rank.value < size.value,
             str(rank.name, " is ", rank.value, ", ", size.name, " is ", size.value), "let the launcher set both");
}

// "a1" of "a1,b2", "node07" of "node[07-09,12],gpu3", "n1-ib" of "n1-ib".
std::string first_host(const std::string& list) {
  const size_t bracket = list.find('['), comma = list.find(',');
  if (bracket == std::string::npos || comma < bracket) return list.substr(0, comma);
  const size_t number = bracket + 1, end = list.find_first_of(",-]", number), close = list.find(']', number);
  if (end == std::string::npos || close == std::string::npos) return list;
  const size_t next = list.find(',', close);
  return list.substr(0, bracket) + list.substr(number, end - number) +
         list.substr(close + 1, next == std::string::npos ? next : next - close - 1);
}

// Those of one node in "8(x2),4", the tasks of the nodes of a step; nothing if it has no such node.
std::optional<int> tasks_of_node(const std::string& name, const std::string& list, int node) {
  const char *at = list.data(), *const end = at + list.size();
  auto number = [&](int& into) {
    const auto [next, code] = std::from_chars(at, end, into);
    const bool is_one = code == std::errc() && into > 0;
    at = next;
    return is_one;
  };
  auto skip = [&](std::string_view text) {
    const bool is_there = std::string_view(at, static_cast<size_t>(end - at)).starts_with(text);
    if (is_there) at += text.size();
    return is_there;
  };
  std::optional<int> found;
  int64_t first = 0;  // node of the part
  do {
    int tasks = 0, nodes = 1;
    const bool is_part = number(tasks) && (!skip("(x") || (number(nodes) && skip(")")));
    WEFT_CHECK(is_part && (at == end || *at == ','),
               str(name, " is '", list, "', not tasks of nodes such as '8(x2),4'"),
               "unset it, or let the launcher set it");
    if (first <= node && node - first < nodes) found = tasks;
    first += nodes;
  } while (skip(","));
  return found;
}

// Of the step, else what it was asked to have, else of the job.
int slurm_local_size(const Variables& v, int otherwise) {
  const auto node = v.number({"SLURM_NODEID"});
  auto of_list = [&](const char* name) {
    const std::string* list = node ? v.text(name) : nullptr;
    return list ? tasks_of_node(name, *list, node->value) : std::nullopt;
  };
  if (const auto tasks = of_list("SLURM_STEP_TASKS_PER_NODE")) return *tasks;
  if (const auto tasks = v.number({"SLURM_NTASKS_PER_NODE"})) return tasks->value;
  return of_list("SLURM_TASKS_PER_NODE").value_or(otherwise);
}

// mpirun and hydra start their own daemons by srun, so that Slurm's variables are then those of a daemon.
std::optional<Launch> by_mpi(const Variables& v) {
  const auto rank = v.number({"OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK"});
  if (!rank) return std::nullopt;
  Launch launch;
  launch.launcher = rank->name == "OMPI_COMM_WORLD_RANK"                  ? Launcher::open_mpi
                    : v.has("SLURM_STEP_ID") && !v.has("MPI_LOCALRANKID") ? Launcher::srun_mpi
                    : rank->name == "PMIX_RANK"                           ? Launcher::open_mpi
                                                                          : Launcher::hydra;
  auto size = v.number({"OMPI_COMM_WORLD_SIZE", "PMI_SIZE"});
  if (launch.launcher == Launcher::srun_mpi) {
    require_same(rank, v.number({"SLURM_PROCID"}));
    const auto of_slurm = v.number({"SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"});
    require_same(size, of_slurm);
    if (!size) size = of_slurm;
  }
  if (v.has("RANK") && v.has("WORLD_SIZE")) {
    require_same(rank, v.number({"RANK"}));
    require_same(size, v.number({"WORLD_SIZE"}));
  }
  if (size) require_rank_in_size(*rank, *size);
  launch.rank = rank->value;
  launch.size = size ? size->value : 0;
  launch.local_rank = v.number_or({"OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID"}, launch.rank);
  const int all = std::max(1, launch.size);
  launch.local_size =
      launch.launcher == Launcher::srun_mpi
          ? slurm_local_size(v, all)
          : v.number_or({"OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "SLURM_NTASKS_PER_NODE"}, all);
  return launch;
}

std::optional<Launch> by_torchrun(const Variables& v) {
  if (!v.has("RANK") || !v.has("WORLD_SIZE")) return std::nullopt;
  const auto rank = v.number({"RANK"}), size = v.number({"WORLD_SIZE"});
  require_rank_in_size(*rank, *size);
  // With torchrun, srun starts one agent per node, and its variables are those of the agent.
  if (v.has("SLURM_STEP_ID") && !v.has("TORCHELASTIC_RUN_ID")) {
    require_same(rank, v.number({"SLURM_PROCID"}));
    require_same(size, v.number({"SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"}));
  }
  Launch launch{.launcher = Launcher::torchrun, .rank = rank->value, .size = size->value};
  launch.local_rank = v.number_or({"LOCAL_RANK"}, launch.rank);
  launch.local_size = v.number_or({"LOCAL_WORLD_SIZE"}, launch.size);
  const std::string *host = v.text("MASTER_ADDR"), *port = v.text("MASTER_PORT");
  WEFT_CHECK(host || size->value == 1,
             str("RANK is ", rank->value, " and WORLD_SIZE is ", size->value, ", but MASTER_ADDR is not set"),
             "set MASTER_ADDR to the host of rank 0, or start the program by torchrun");
  if (host) launch.rendezvous = *host + ":" + (port ? *port : kDefaultPort);
  return launch;
}

// A shell of salloc or sbatch has Slurm's variables too; only srun sets the step.
std::optional<Launch> by_slurm(const Variables& v) {
  const auto rank = v.number({"SLURM_PROCID"}), size = v.number({"SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"});
  if (!rank || !size || !v.has("SLURM_STEP_ID") || size->value <= 1) return std::nullopt;
  require_rank_in_size(*rank, *size);
  Launch launch{.launcher = Launcher::srun, .rank = rank->value, .size = size->value};
  launch.local_rank = v.number_or({"SLURM_LOCALID"}, launch.rank);
  launch.local_size = slurm_local_size(v, launch.size);
  const std::string* hosts = v.text("SLURM_STEP_NODELIST");
  if (!hosts) hosts = v.text("SLURM_JOB_NODELIST");
  const std::string* port = v.text("MASTER_PORT");
  if (hosts) launch.rendezvous = first_host(*hosts) + ":" + (port ? *port : kDefaultPort);
  return launch;
}

void require_means(const Launch& launch, const LaunchMeans& means) {
  WEFT_CHECK(
      !launch.uses_mpi() || launch.size == 1 || means.has_mpi,
      str("started by ", launch.launcher, " as rank ", launch.rank, ", but this build has no MPI"),
      "install libopenmpi-dev and openmpi-bin and configure with -DWEFT_MPI=ON, or use one process with --ranks N");
  const bool needs_nccl = launch.launcher == Launcher::torchrun || launch.launcher == Launcher::srun;
  WEFT_CHECK(!needs_nccl || launch.size == 1 || means.has_nccl,
             str("started by ", launch.launcher, " as rank ", launch.rank, " of ", launch.size,
                 ": without MPI these processes can only join by NCCL, which this build does not have"),
             kWays);
}

void choose_threads(Launch& launch, const Variables& v, const LaunchMeans& means) {
  int wanted = 0;
  if (const std::string* text = v.text("OMP_NUM_THREADS"))  // "4", or "4,2" for loops in loops
    std::from_chars(text->data(), text->data() + text->size(), wanted);
  // Processes are bound to cores of their own, or share those of the host; ranks that are threads share what their process has.
  const bool is_one_process = launch.launcher == Launcher::single || launch.launcher == Launcher::threads;
  const int ranks = std::max(1, launch.local_size), cores = is_one_process ? means.free_cores : means.cores;
  const int share = std::max(1, cores / ranks);
  if (wanted <= 0) launch.threads = std::min(share, means.free_cores);
  else launch.threads = launch.launcher == Launcher::threads ? std::max(1, wanted / ranks) : wanted;

  const int all = ranks * launch.threads;
  if (all > cores)
    launch.warnings.push_back(
        str(ranks, ranks == 1 ? " rank" : " ranks", " on this host with ", launch.threads,
            launch.threads == 1 ? " thread" : " threads", " each: ", all, " threads on ", cores, " cores; ",
            ranks > cores ? "use fewer ranks"
                          : str("set OMP_NUM_THREADS=", launch.launcher == Launcher::threads ? cores : share)));
  else if (launch.threads > means.free_cores)
    launch.warnings.push_back(str(launch.threads, " threads of this rank are bound to ", means.free_cores,
                                  means.free_cores == 1 ? " core" : " cores", "; start mpirun with --bind-to none"));
}

}  // namespace

std::string_view to_string(Launcher launcher) {
  switch (launcher) {
    case Launcher::single: return "itself";
    case Launcher::threads: return "--ranks";
    case Launcher::open_mpi: return "mpirun (Open MPI)";
    case Launcher::hydra: return "mpirun (MPICH or Intel MPI)";
    case Launcher::srun_mpi: return "srun --mpi";
    case Launcher::torchrun: return "torchrun (RANK, WORLD_SIZE)";
    case Launcher::srun: return "srun";
  }
  return "?";
}

Environment environment() {
  Environment all;
  for (char** entry = environ; entry && *entry; ++entry) {
    const std::string text = *entry;
    const size_t equals = text.find('=');
    if (equals != std::string::npos) all.emplace(text.substr(0, equals), text.substr(equals + 1));
  }
  return all;
}

LaunchMeans launch_means() {
  LaunchMeans means{.has_mpi = has_mpi(), .has_nccl = has_nccl()};
  means.cores = std::max(1, static_cast<int>(::sysconf(_SC_NPROCESSORS_ONLN)));
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  means.free_cores = ::sched_getaffinity(0, sizeof allowed, &allowed) == 0 ? CPU_COUNT(&allowed) : means.cores;
  return means;
}

Launch detect_launch(const LaunchFlags& flags, const Environment& environment, const LaunchMeans& means) {
  const Variables v(environment);
  WEFT_CHECK(flags.threads >= 0, str("--ranks ", flags.threads), "use at least one rank");
  std::optional<Launch> launch = by_mpi(v);
  if (!launch) launch = by_torchrun(v);
  if (!launch) launch = by_slurm(v);
  if (flags.threads > 0) {
    WEFT_CHECK(!launch || launch->size == 1,
               str("--ranks ", flags.threads, " makes ranks of the threads of one process, but this process is rank ",
                   launch->rank, launch->size ? str(" of ", launch->size) : "", " of ", launch->launcher),
               str("leave out --ranks, or start the program without ", launch->launcher));
    launch = Launch{.launcher = Launcher::threads, .size = flags.threads, .local_size = flags.threads};
  }
  if (!launch) launch = Launch{};
  require_means(*launch, means);
  choose_threads(*launch, v, means);
  return *launch;
}

int gpu_of(const Launch& launch, int num_visible) {
  WEFT_CHECK(num_visible > 0, str("rank ", launch.rank, " of ", launch.launcher, " sees no GPU"),
             "set CUDA_VISIBLE_DEVICES to the GPUs of the host, or use the CPU");
  return launch.launcher == Launcher::threads ? 0 : launch.local_rank % num_visible;
}

}  // namespace weft::dist
