// How the ranks of a training save: who waits, who hears of an error, and how much of the state the first rank has at a time.
#include "src/training/saving.h"

#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "tests/io/temp_folder.h"
#include "tests/support/errors.h"
#include "tests/training/ranks_support.h"
#include "weft/core/allocator.h"

namespace weft {
namespace {

using namespace test;

// The first rank needs three times as long as others wait for one that is silent.
TEST(Saving, OthersWaitForAFirstRankThatWritesForLongerThanTheTimeOut) {
  std::vector<std::string> said(3);
  dist::run_thread_ranks(3,
                         [&](dist::Communicator& comm) {
                           Saving saving(comm, Device::cpu(), nullptr, {});
                           said[static_cast<size_t>(comm.rank())] = saving.write([] {
                             std::this_thread::sleep_for(std::chrono::milliseconds(1500));
                             return std::string("step-7");
                           });
                         },
                         {.timeout_s = 0.5});
  EXPECT_EQ(said, (std::vector<std::string>{"step-7", "step-7", "step-7"}));
}

TEST(Saving, AnErrorOfTheFirstRankIsThatOfAll) {
  std::vector<std::string> problems(3);
  dist::run_thread_ranks(3, [&](dist::Communicator& comm) {
    Saving saving(comm, Device::cpu(), nullptr, {});
    problems[static_cast<size_t>(comm.rank())] =
        error_of([&] { saving.write([]() -> std::string { fail("the disk is full", "free some of it"); }); },
                 {"the disk is full", "free some of it"});
    comm.barrier();  // and they go on together
  });
  EXPECT_EQ(problems, std::vector<std::string>(3));
}

// A write that fails when it has taken a part of the state leaves the training as it was.
TEST(Saving, AFolderThatCannotBeWrittenIsAnErrorOnAllRanksWhichGoOn) {
  TempFolder folder;
  std::vector<std::string> problems(2);
  dist::run_thread_ranks(2, [&](dist::Communicator& comm) {
    LanguageModel model(tiny_options(), Rng(1));
    Training training(model,
                      {.groups = {{.algorithm = AdamWOptions{.lr = 1e-2}}}, .ranks = {.comm = &comm, .zero = 2}});
    training.step(rows_from, training.num_samples(), 8);
    problems[static_cast<size_t>(comm.rank())] = error_of([&] { training.save("/proc/none"); }, {"/proc/none"});
    training.step(rows_from, training.num_samples(), 8);
    training.save(folder / "c");
  });
  EXPECT_EQ(problems, std::vector<std::string>(2));
  std::vector<std::string> messages;
  EXPECT_TRUE(io::load_latest_checkpoint(folder / "c", messages));
}

// AdamW keeps two numbers per weight. The first of four ranks has its quarter of them, and while it saves one whole tensor more.
TEST(Saving, TheFirstRankHasOneWholeTensorOfTheOthersAtATime) {
  TempFolder folder;
  std::vector<int64_t> more(4);
  int64_t state_bytes = 0, largest_bytes = 0;
  dist::run_thread_ranks(4, [&](dist::Communicator& comm) {
    LanguageModelOptions size = tiny_options();
    size.dim = 64, size.ffn.hidden = 256;
    LanguageModel model(size, Rng(1));
    TrainingOptions options{.groups = {{.algorithm = AdamWOptions{.lr = 1e-2}}}};
    options.ranks = {.comm = &comm, .zero = 1, .bucket_bytes = 2000};
    Training training(model, options);
    training.step(rows_from, training.num_samples(), 8);
    Allocator& memory = allocator(Device::cpu());
    memory.reset_peak();
    const int64_t before = memory.stats().current_bytes;
    training.save(folder / "c");
    more[static_cast<size_t>(comm.rank())] = memory.stats().peak_bytes - before;
    if (comm.rank() > 0) return;
    for (const NamedParam& p : model.params()) {
      const auto bytes = static_cast<int64_t>(p.param->value().num_bytes());
      state_bytes += 2 * bytes, largest_bytes = std::max(largest_bytes, bytes);
    }
  });
  const int64_t names_bytes = 32768;  // of all ranks' tensors, as text
  ASSERT_GT(state_bytes / 2, largest_bytes + names_bytes) << "the model is too small to tell";
  for (int64_t bytes : more) EXPECT_LE(bytes, largest_bytes + names_bytes);
}

}  // namespace
}  // namespace weft
