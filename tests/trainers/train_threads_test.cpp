// `weft train --ranks 2` in this process, small enough for ThreadSanitizer, which sees the threads of a command here: ranks, the first of which
// tells the other what to do, reductions beside backward, prefetching, records, and a signal that stops all.
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <fstream>
#include <memory>
#include <thread>

#include "tests/io/temp_folder.h"
#include "trainers/console/stop_signal.h"
#include "weft/io/files.h"
#include "weft/trainers/cli.h"

namespace weft::cli {
namespace {

class TrainThreads : public ::testing::Test {
 protected:
  void SetUp() override {
    std::ofstream text(folder_ / "text.txt");
    for (int i = 0; i < 200; ++i) text << "line " << i * 7919 % 100 << " of a text\n";
    std::ofstream(folder_ / "run.txtpb") << R"(
model { dim: 8 layers: 1 context: 16 mixer { softmax { heads: 2 } } ffn { swiglu { hidden: 16 } } }
data { tokenizer { characters {} } train { path: "text.txt" } val { fraction: 0.1 } }
optim { group { match: "*" adamw { lr: 3e-3 } } }
train { tokens: 3200 tokens_per_step: 32 micro_batch: 1 threads: 1 }
eval { every: 100 } log { every: 2 samples_every: 100 sample_tokens: 4 } checkpoint { every: 50 }
)";
  }
  int train(const std::string& run, std::vector<std::string> more) const {
    std::vector<std::string> words{"weft",    "train", folder_ / "run.txtpb", "--run", folder_ / run, "--quiet",
                                   "--ranks", "2"};
    words.insert(words.end(), more.begin(), more.end());
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    return main(static_cast<int>(argv.size()), argv.data(), {});
  }
  std::string weights(const std::string& run) const {
    return io::read_file(folder_ / run + "/checkpoints/step-00000100/model.safetensors");
  }

  const test::TempFolder folder_;
};

TEST_F(TrainThreads, TrainValidateSampleAndSave) {
  EXPECT_EQ(train("data", {"parallel.data=2", "parallel.zero=1"}), kSuccess);
  EXPECT_EQ(train("context", {"parallel.context=2"}), kSuccess);
  EXPECT_TRUE(io::file_exists(folder_ / "context/metrics.jsonl"));
}

// The signal comes while both ranks train.
TEST_F(TrainThreads, StopOnASignalAndGoOnToTheSameBits) {
  ASSERT_EQ(train("whole", {"parallel.data=2"}), kSuccess);
  std::thread sender([this] {
    const std::string metrics = folder_ / "stopped/metrics.jsonl";
    for (int tries = 0; tries < 60000 && !(io::file_exists(metrics) && !io::read_file(metrics).empty()); ++tries)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    kill(getpid(), SIGTERM);
  });
  const int code = train("stopped", {"parallel.data=2"});
  sender.join();
  ASSERT_EQ(code, kStopped);
  ASSERT_EQ(train("stopped", {"parallel.data=2"}), kSuccess);
  EXPECT_EQ(weights("stopped") == weights("whole"), true);
}

// Each rank of a process has one: a later one neither forgets a signal nor changes what the last one restores.
TEST(StopSignal, OfSeveralRanksIsOne) {
  auto handler = [] {
    struct sigaction action {};
    sigaction(SIGTERM, nullptr, &action);
    return action.sa_handler;
  };
  const auto before = handler();
  {
    auto leads = std::make_unique<train::StopSignal>(false);
    raise(SIGTERM);
    const train::StopSignal follows(false);
    EXPECT_TRUE(train::StopSignal::was_raised());
    leads.reset();
    EXPECT_NE(handler(), before) << "a rank is left that listens";
  }
  EXPECT_EQ(handler(), before);
  const train::StopSignal again(false);
  EXPECT_FALSE(train::StopSignal::was_raised());
}

}  // namespace
}  // namespace weft::cli
