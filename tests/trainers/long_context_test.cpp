// The recipe of long sequences: four ranks train it as one does.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "tests/trainers/config_text.h"
#include "trainers/run/session.h"
#include "trainers/run/team.h"
#include "trainers/run/trainer.h"
#include "weft/core/error.h"
#include "weft/core/parallel.h"
#include "weft/io/files.h"

namespace weft::train {
namespace {

constexpr int64_t kSteps = 50;

class LongContext : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = (std::filesystem::temp_directory_path() / ("weft_long_context_" + std::to_string(getpid()))).string();
    io::make_folders(folder_);
    std::string text;
    for (int i = 0; i < 4000; ++i)
      text += "entry " + std::to_string(i * 7919 % 1000) + (i % 3 ? " of a dictionary\n" : ", see the entry before\n");
    io::write_file_atomically(folder_ + "/text.txt", text);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  // The recipe with a smaller model and shorter sequences.
  config::Loaded recipe(int ranks) const {
    return config::load(WEFT_RECIPES "/long_context.txtpb",
                        {"data.train.path=" + folder_ + "/text.txt", "model.dim=32", "model.layers=2",
                         "model.context=250", "model.ffn={swiglu{hidden:64}}", "train.tokens_per_step=1000",
                         "train.tokens=50000", "train.micro_batch=2", str("parallel.context=", ranks)});
  }

  static std::vector<double> losses(const config::Loaded& config, const RunData& data, DType compute, Team* team) {
    auto model = make_model(config, data);
    model->set_compute(compute);
    TrainerOptions options = trainer_options(config.experiment, data);
    options.byte_lengths.clear();  // of losses in f32
    Trainer trainer(*model, *data.loader, options, team);
    std::vector<double> losses;
    for (int64_t step = 0; step < kSteps; ++step) {
      if (team && !team->leads()) { EXPECT_EQ(team->hear().duty, Duty::step); }
      losses.push_back(trainer.step().loss);
    }
    return losses;
  }
  std::vector<double> losses_of_one(DType compute) const {
    set_num_threads(1);
    const config::Loaded config = recipe(1);
    const RunData data = prepare_data(config, folder_, {});
    return losses(config, data, compute, nullptr);
  }
  std::vector<double> losses_of_four(DType compute) const {
    const config::Loaded config = recipe(4);
    std::vector<double> of_first;
    dist::run_thread_ranks(4, [&](dist::Communicator& world) {
      Team team(world, choose_context(config, {}));
      const RunData data = prepare_data(config, folder_, {.keeps_shards = true});
      const std::vector<double> mine = losses(config, data, compute, &team);
      if (team.leads()) of_first = mine;
    });
    return of_first;
  }

  std::string folder_;
};

double largest_difference(const std::vector<double>& a, const std::vector<double>& b) {
  double largest = 0;
  for (size_t i = 0; i < a.size(); ++i) largest = std::max(largest, std::abs(a[i] - b[i]));
  return largest;
}

// In f64 to 1e-9, and in f32 at most twice as far from the exact losses as those of one rank.
TEST_F(LongContext, LossesOfFourRanksAreThoseOfOne) {
  const std::vector<double> exact = losses_of_one(kF64);
  ASSERT_EQ(exact.size(), size_t{kSteps});
  EXPECT_LT(exact.back(), 0.8 * exact.front());
  EXPECT_LE(largest_difference(losses_of_four(kF64), exact), 1e-9);
  const double of_one = largest_difference(losses_of_one(kF32), exact);
  EXPECT_GT(of_one, 0);
  EXPECT_LE(largest_difference(losses_of_four(kF32), exact), 2 * of_one);
}

}  // namespace
}  // namespace weft::train
