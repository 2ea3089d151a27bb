// Which launcher a process finds in its environment, and what it refuses.
#include "weft/comm/launch.h"

#include <gtest/gtest.h>

#include "tests/support/errors.h"
#include "weft/comm/communicator.h"

namespace weft::dist {
namespace {

constexpr LaunchMeans kAll{.has_mpi = true, .has_nccl = true, .cores = 16, .free_cores = 16};
constexpr LaunchMeans kNone{.cores = 16, .free_cores = 16};

Environment open_mpi(const char* rank, const char* size) {
  return {{"OMPI_COMM_WORLD_RANK", rank},
          {"OMPI_COMM_WORLD_SIZE", size},
          {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
          {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"},
          {"PMIX_RANK", rank}};
}
Environment torchrun(const char* rank, const char* size) {
  return {{"RANK", rank},           {"WORLD_SIZE", size},   {"LOCAL_RANK", "0"}, {"LOCAL_WORLD_SIZE", "2"},
          {"MASTER_ADDR", "node7"}, {"MASTER_PORT", "4000"}};
}
Environment slurm(const char* rank, const char* size) {
  return {{"SLURM_PROCID", rank}, {"SLURM_NTASKS", size},         {"SLURM_LOCALID", "1"},
          {"SLURM_STEP_ID", "3"}, {"SLURM_NTASKS_PER_NODE", "2"}, {"SLURM_STEP_NODELIST", "node[07-09,12],gpu3"}};
}
Environment with(Environment all, const Environment& more) {
  for (const auto& [name, value] : more) all[name] = value;
  return all;
}
std::string refused(const LaunchFlags& flags, const Environment& all, const LaunchMeans& means,
                    std::initializer_list<std::string_view> parts) {
  return test::error_of([&] { detect_launch(flags, all, means); }, parts);
}

TEST(Launch, AProcessThatNobodyLaunchedIsAlone) {
  const Launch launch = detect_launch({}, {{"HOME", "/root"}}, kNone);
  EXPECT_EQ(launch.launcher, Launcher::single);
  EXPECT_EQ(launch.rank, 0);
  EXPECT_EQ(launch.size, 1);
  EXPECT_EQ(launch.threads, 16);
  EXPECT_TRUE(launch.warnings.empty());
  EXPECT_FALSE(launch.uses_mpi());
}

TEST(Launch, RanksOfTheCommandLineAreThreadsThatShareTheCores) {
  const Launch launch = detect_launch({.threads = 4}, {}, kNone);
  EXPECT_EQ(launch.launcher, Launcher::threads);
  EXPECT_EQ(launch.size, 4);
  EXPECT_EQ(launch.local_size, 4);
  EXPECT_EQ(launch.threads, 4);
}

TEST(Launch, MpirunIsFoundByTheVariablesOfEachMpi) {
  const Launch open = detect_launch({}, open_mpi("3", "4"), kAll);
  EXPECT_EQ(open.launcher, Launcher::open_mpi);
  EXPECT_TRUE(open.uses_mpi());
  EXPECT_EQ(open.rank, 3);
  EXPECT_EQ(open.size, 4);
  EXPECT_EQ(open.local_rank, 1);
  EXPECT_EQ(open.local_size, 2);
  EXPECT_EQ(open.threads, 8);
  const Launch hydra = detect_launch(
      {}, {{"PMI_RANK", "2"}, {"PMI_SIZE", "4"}, {"MPI_LOCALRANKID", "0"}, {"MPI_LOCALNRANKS", "2"}}, kAll);
  EXPECT_EQ(hydra.launcher, Launcher::hydra);
  EXPECT_EQ(hydra.rank, 2);
  EXPECT_EQ(hydra.local_rank, 0);
  EXPECT_EQ(hydra.local_size, 2);
  // srun gives the rank to MPI, and the number of ranks in a variable of its own.
  const Launch srun = detect_launch({}, with(slurm("1", "4"), {{"PMIX_RANK", "1"}}), kAll);
  EXPECT_EQ(srun.launcher, Launcher::srun_mpi);
  EXPECT_EQ(srun.rank, 1);
  EXPECT_EQ(srun.size, 4);
  EXPECT_EQ(srun.local_size, 2);
}

// Without --ntasks-per-node the tasks of a step stand in a list of all its nodes, with which threads are shared out.
TEST(Launch, SlurmSaysTheTasksOfEachNode) {
  for (const Environment& mpi : {Environment{{"PMIX_RANK", "1"}}, Environment{}})
    for (const char* name : {"SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"}) {
      Environment bare = with(slurm("1", "20"), mpi);
      bare.erase("SLURM_NTASKS_PER_NODE");
      auto launch = [&](const char* list, const char* node) {
        return detect_launch({}, with(bare, {{name, list}, {"SLURM_NODEID", node}}), kAll);
      };
      const std::pair<const char*, std::vector<int>> lists[] = {
          {"8(x2),4", {8, 8, 4}}, {"8", {8}}, {"1(x3)", {1, 1, 1}}, {"4,2(x2),16(x1)", {4, 2, 2, 16}}, {"3,5", {3, 5}}};
      for (const auto& [list, of_nodes] : lists) {
        for (size_t node = 0; node < of_nodes.size(); ++node)
          EXPECT_EQ(launch(list, std::to_string(node).c_str()).local_size, of_nodes[node]) << list << " " << node;
        EXPECT_EQ(launch(list, std::to_string(of_nodes.size()).c_str()).local_size, 20) << "is of other nodes";
      }
      EXPECT_EQ(launch("8(x2),4", "1").threads, 2);
      EXPECT_EQ(detect_launch({}, with(bare, {{name, "8(x2),4"}}), kAll).local_size, 20) << "which node is not said";
      for (const char* list : {"x", "8(x2", "8(x2)4", "8,", ",8", "8(2)", "0", "8 (x2)", "8(x0)", "-1"})
        EXPECT_EQ(refused({}, with(bare, {{name, list}, {"SLURM_NODEID", "0"}}), kAll,
                          {str(name, " is '", list, "'"), "'8(x2),4'", "unset it"}),
                  "");
    }
  // A step of fewer tasks than the job was asked to have on each node; those of the job are the last to ask.
  const Environment both = with(slurm("1", "20"), {{"SLURM_NODEID", "1"}, {"SLURM_TASKS_PER_NODE", "7(x2)"}});
  EXPECT_EQ(detect_launch({}, both, kAll).local_size, 2);
  EXPECT_EQ(detect_launch({}, with(both, {{"SLURM_STEP_TASKS_PER_NODE", "8,1"}}), kAll).local_size, 1);
  // mpirun's daemons are one task of each node.
  EXPECT_EQ(detect_launch({}, with(with(both, {{"SLURM_STEP_TASKS_PER_NODE", "1(x2)"}}), open_mpi("3", "4")), kAll)
                .local_size,
            2);
}

TEST(Launch, TheNumberOfRanksMayBeKnownToMpiAlone) {
  const Launch launch = detect_launch({}, {{"PMIX_RANK", "5"}}, kAll);
  EXPECT_EQ(launch.rank, 5);
  EXPECT_EQ(launch.size, 0);
}

TEST(Launch, MpirunInsideAJobOfSlurmIsNotMisledByTheVariablesOfItsDaemons) {
  EXPECT_EQ(detect_launch({}, with(slurm("0", "2"), open_mpi("3", "4")), kAll).rank, 3);
  const Environment hydra{{"PMI_RANK", "2"}, {"PMI_SIZE", "4"}, {"MPI_LOCALRANKID", "0"}};
  EXPECT_EQ(detect_launch({}, with(slurm("0", "2"), hydra), kAll).launcher, Launcher::hydra);
}

TEST(Launch, TorchrunAndSrunNameTheirRendezvous) {
  const Launch torch = detect_launch({}, torchrun("1", "4"), kAll);
  EXPECT_EQ(torch.launcher, Launcher::torchrun);
  EXPECT_EQ(torch.rendezvous, "node7:4000");
  EXPECT_EQ(torch.local_size, 2);
  const Launch srun = detect_launch({}, slurm("1", "4"), kAll);
  EXPECT_EQ(srun.launcher, Launcher::srun);
  EXPECT_EQ(srun.rendezvous, "node07:29500");
  for (auto [list, first] : {std::pair("a1,b2", "a1:29500"), std::pair("n1-ib", "n1-ib:29500"),
                             std::pair("rack[3-4]-node,x", "rack3-node:29500"), std::pair("n[1]", "n1:29500")})
    EXPECT_EQ(detect_launch({}, with(slurm("1", "4"), {{"SLURM_STEP_NODELIST", list}}), kAll).rendezvous, first);
  // One agent of torchrun per node, each started by srun.
  EXPECT_EQ(
      detect_launch({}, with(with(slurm("0", "2"), torchrun("3", "4")), {{"TORCHELASTIC_RUN_ID", "x"}}), kAll).rank, 3);
}

TEST(Launch, AShellOfSlurmAndALoneWorldSizeAreNoLaunch) {
  Environment shell = slurm("0", "4");
  shell.erase("SLURM_STEP_ID");
  EXPECT_EQ(detect_launch({}, shell, kNone).launcher, Launcher::single);
  EXPECT_EQ(detect_launch({}, slurm("0", "1"), kNone).launcher, Launcher::single);
  EXPECT_EQ(detect_launch({}, {{"WORLD_SIZE", "4"}}, kNone).launcher, Launcher::single);
  EXPECT_EQ(detect_launch({}, {{"RANK", "captain"}}, kNone).launcher, Launcher::single);
}

TEST(Launch, SourcesThatDisagreeAreAnErrorWithBothValues) {
  EXPECT_EQ(refused({}, with(open_mpi("3", "4"), torchrun("2", "4")), kAll,
                    {"OMPI_COMM_WORLD_RANK is 3", "RANK is 2", "one launcher"}),
            "");
  EXPECT_EQ(
      refused({}, with(open_mpi("3", "4"), torchrun("3", "8")), kAll, {"OMPI_COMM_WORLD_SIZE is 4", "WORLD_SIZE is 8"}),
      "");
  EXPECT_EQ(refused({}, with(slurm("1", "4"), {{"PMIX_RANK", "2"}}), kAll, {"PMIX_RANK is 2", "SLURM_PROCID is 1"}),
            "");
  EXPECT_EQ(refused({}, with(slurm("1", "4"), {{"PMI_RANK", "1"}, {"PMI_SIZE", "8"}}), kAll,
                    {"PMI_SIZE is 8", "SLURM_NTASKS is 4"}),
            "");
  EXPECT_EQ(refused({}, with(slurm("1", "4"), torchrun("2", "4")), kAll, {"RANK is 2", "SLURM_PROCID is 1"}), "");
  EXPECT_EQ(detect_launch({}, with(open_mpi("3", "4"), torchrun("3", "4")), kAll).launcher, Launcher::open_mpi);
}

TEST(Launch, RanksOfTheCommandLineAreRefusedUnderALauncher) {
  EXPECT_EQ(refused({.threads = 2}, open_mpi("1", "4"), kAll,
                    {"--ranks 2", "rank 1 of 4 of mpirun (Open MPI)", "leave out --ranks"}),
            "");
  EXPECT_EQ(refused({.threads = 1}, open_mpi("1", "4"), kAll, {"--ranks 1", "rank 1 of 4 of mpirun"}), "");
  EXPECT_EQ(refused({.threads = 1}, slurm("1", "4"), kAll, {"--ranks 1", "rank 1 of 4 of srun"}), "");
  EXPECT_EQ(refused({.threads = 2}, {{"PMIX_RANK", "0"}}, kAll, {"--ranks 2", "rank 0 of mpirun"}), "");
  EXPECT_EQ(refused({.threads = 2}, slurm("1", "4"), kAll, {"rank 1 of 4 of srun"}), "");
  EXPECT_EQ(detect_launch({.threads = 2}, open_mpi("0", "1"), kAll).launcher, Launcher::threads);
  EXPECT_EQ(refused({.threads = -1}, {}, kAll, {"--ranks -1"}), "");
}

TEST(Launch, WhatTheBuildCannotJoinIsRefusedWithTheReason) {
  EXPECT_EQ(refused({}, open_mpi("1", "4"), kNone, {"rank 1", "no MPI", "WEFT_MPI=ON"}), "");
  EXPECT_EQ(refused({}, torchrun("1", "4"), kNone, {"torchrun", "rank 1 of 4", "NCCL", "mpirun", "--ranks"}), "");
  EXPECT_EQ(refused({}, slurm("1", "4"), {.has_mpi = true}, {"srun", "NCCL", "mpirun"}), "");
  EXPECT_EQ(detect_launch({}, torchrun("0", "1"), kNone).size, 1);
}

TEST(Launch, ValuesThatAreNoRanksAreRefused) {
  EXPECT_EQ(refused({}, open_mpi("4", "4"), kAll, {"OMPI_COMM_WORLD_RANK is 4", "OMPI_COMM_WORLD_SIZE is 4"}), "");
  EXPECT_EQ(refused({}, open_mpi("one", "4"), kAll, {"OMPI_COMM_WORLD_RANK is 'one'", "not a number"}), "");
  EXPECT_EQ(refused({}, torchrun("-1", "4"), kAll, {"RANK is '-1'"}), "");
  EXPECT_EQ(refused({}, {{"RANK", "0"}, {"WORLD_SIZE", "2"}}, kAll, {"MASTER_ADDR is not set", "torchrun"}), "");
}

TEST(Launch, ThreadsThatOversubscribeTheCoresAreAWarningWithNumbers) {
  auto warning = [](const LaunchFlags& flags, const Environment& all, const LaunchMeans& means) {
    const Launch launch = detect_launch(flags, all, means);
    return launch.warnings.empty() ? "" : launch.warnings.front();
  };
  const Environment two = open_mpi("1", "2");
  EXPECT_EQ(warning({}, with(two, {{"OMP_NUM_THREADS", "8"}}), kAll), "");
  EXPECT_EQ(warning({}, with(two, {{"OMP_NUM_THREADS", "12,2"}}), kAll),
            "2 ranks on this host with 12 threads each: 24 threads on 16 cores; set OMP_NUM_THREADS=8");
  EXPECT_EQ(warning({.threads = 2}, {{"OMP_NUM_THREADS", "64"}}, kAll),
            "2 ranks on this host with 32 threads each: 64 threads on 16 cores; set OMP_NUM_THREADS=16");
  EXPECT_EQ(warning({.threads = 20}, {}, kAll),
            "20 ranks on this host with 1 thread each: 20 threads on 16 cores; use fewer ranks");
  EXPECT_EQ(warning({}, {{"OMP_NUM_THREADS", "32"}}, kAll),
            "1 rank on this host with 32 threads each: 32 threads on 16 cores; set OMP_NUM_THREADS=16");
  LaunchMeans bound = kAll;
  bound.free_cores = 1;
  EXPECT_EQ(detect_launch({}, two, bound).threads, 1);
  EXPECT_EQ(warning({}, with(two, {{"OMP_NUM_THREADS", "4"}}), bound),
            "4 threads of this rank are bound to 1 core; start mpirun with --bind-to none");
}

TEST(Launch, ThisProcessHasAnEnvironmentAndMeans) {
  EXPECT_TRUE(environment().contains("PATH"));
  const LaunchMeans means = launch_means();
  EXPECT_GE(means.cores, 1);
  EXPECT_GE(means.free_cores, 1);
  EXPECT_LE(means.free_cores, means.cores);
  EXPECT_EQ(means.has_mpi, has_mpi());
}

// Two nodes of four GPUs; a launcher that shows each process its own GPU; more processes than GPUs; threads.
TEST(Launch, EachProcessOfAHostHasTheGpuOfItsLocalRank) {
  auto gpu = [](Launcher launcher, int rank, int local_rank, int num_visible) {
    return gpu_of({.launcher = launcher, .rank = rank, .size = 8, .local_rank = local_rank}, num_visible);
  };
  for (Launcher launcher : {Launcher::open_mpi, Launcher::srun_mpi, Launcher::torchrun, Launcher::srun})
    for (int rank = 0; rank < 8; ++rank) {
      EXPECT_EQ(gpu(launcher, rank, rank % 4, 4), rank % 4);
      EXPECT_EQ(gpu(launcher, rank, rank % 4, 1), 0);
      EXPECT_EQ(gpu(launcher, rank, rank, 3), rank % 3);
      EXPECT_EQ(gpu(Launcher::threads, rank, rank, 4), 0);
    }
  EXPECT_EQ(test::error_of([&] { gpu(Launcher::torchrun, 5, 1, 0); }, {"rank 5 of torchrun", "sees no GPU"}), "");
}

}  // namespace
}  // namespace weft::dist
