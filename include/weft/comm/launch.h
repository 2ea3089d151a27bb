// How this process was started: alone, with ranks as threads, or as one of many by mpirun, srun or torchrun.
//   Launch launch = detect_launch({.threads = flags.ranks}, environment());
// The order: what the command line says; MPI (Open MPI, MPICH, Intel, srun --mpi); RANK and WORLD_SIZE (torchrun); Slurm; one process.
// Sources that contradict each other are an Error that names both values. Nothing is started here.
#pragma once

#include <map>
#include <string>
#include <vector>

namespace weft::dist {

using Environment = std::map<std::string, std::string>;
Environment environment();  // of this process

enum class Launcher {
  single,    // one process, one rank
  threads,   // one process, ranks as threads
  open_mpi,  // mpirun of Open MPI
  hydra,     // mpirun of MPICH and of Intel MPI
  srun_mpi,  // srun --mpi=pmix or pmi2
  torchrun,  // RANK and WORLD_SIZE, with a TCP rendezvous
  srun,      // srun without MPI: the rendezvous is on the first host of the step
};
std::string_view to_string(Launcher launcher);  // "mpirun (Open MPI)", ...

struct Launch {
  Launcher launcher = Launcher::single;
  int rank = 0;
  int size = 1;  // 0: known when MPI has started
  int local_rank = 0;
  int local_size = 1;           // processes on this host; ranks, if they are threads
  std::string rendezvous = {};  // "host:port" of torchrun and srun
  int threads = 1;  // that each rank's loops may use: OMP_NUM_THREADS, or this host's cores divided by its ranks
  std::vector<std::string> warnings = {};

  bool uses_mpi() const {
    return launcher == Launcher::open_mpi || launcher == Launcher::hydra || launcher == Launcher::srun_mpi;
  }
};

// What the command line says; 0: nothing.
struct LaunchFlags {
  int threads = 0;  // --ranks
};

// What this build and this host have.
struct LaunchMeans {
  bool has_mpi = false;
  bool has_nccl = false;
  int cores = 1;       // of the host
  int free_cores = 1;  // that this process may use: mpirun binds ranks to cores
};
LaunchMeans launch_means();

Launch detect_launch(const LaunchFlags& flags, const Environment& environment,
                     const LaunchMeans& means = launch_means());

// Which of the GPUs that this process sees is the rank's: the local rank's, in a circle. A process that sees one takes that one, as launchers
// show each process its own. Ranks that are threads share the first.
int gpu_of(const Launch& launch, int num_visible);

}  // namespace weft::dist
