// The recipe of long sequences: four ranks train it as one does.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "tests/support/errors.h"
#include "tests/trainers/config_text.h"
#include "trainers/run/memory_estimate.h"
#include "trainers/run/session.h"
#include "trainers/run/team.h"
#include "trainers/run/trainer.h"
#include "weft/core/error.h"
#include "weft/core/memory.h"
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
  config::Loaded recipe(int ranks, const std::vector<std::string>& more = {}) const {
    std::vector<std::string> overrides = {"data.train.path=" + folder_ + "/text.txt",
                                          "model.dim=32",
                                          "model.layers=2",
                                          "model.context=250",
                                          "model.ffn={swiglu{hidden:64}}",
                                          "train.tokens_per_step=1000",
                                          "train.tokens=50000",
                                          "train.micro_batch=2",
                                          str("parallel.context=", ranks)};
    overrides.insert(overrides.end(), more.begin(), more.end());
    return config::load(WEFT_RECIPES "/long_context.txtpb", overrides);
  }

  // `limit`: of memory, from the first step on.
  static std::vector<double> losses(const config::Loaded& config, const RunData& data, DType compute, Team* team,
                                    int64_t limit) {
    auto model = make_model(config, data);
    model->set_compute(compute);
    TrainerOptions options = trainer_options(config.experiment, data);
    options.byte_lengths.clear();  // of losses in f32
    Trainer trainer(*model, *data.loader, options, team);
    const MemoryLimit memory(Device::cpu(), limit);
    std::vector<double> losses;
    for (int64_t step = 0; step < trainer.sizes().steps; ++step) {
      if (team && !team->leads()) { EXPECT_EQ(team->hear().duty, Duty::step); }
      losses.push_back(trainer.step().loss);
    }
    return losses;
  }
  std::vector<double> losses_of_one(DType compute, const std::vector<std::string>& more = {},
                                    int64_t limit = INT64_MAX) const {
    set_num_threads(1);
    const config::Loaded config = recipe(1, more);
    const RunData data = prepare_data(config, folder_, {.keeps_shards = true});
    return losses(config, data, compute, nullptr, limit);
  }
  std::vector<double> losses_of_four(DType compute, const std::vector<std::string>& more = {},
                                     int64_t limit = INT64_MAX) const {
    const config::Loaded config = recipe(4, more);
    std::vector<double> of_first;
    dist::run_thread_ranks(4, [&](dist::Communicator& world) {
      Team team(world, choose_context(config, {}));
      const RunData data = prepare_data(config, folder_, {.keeps_shards = true});
      const std::vector<double> mine = losses(config, data, compute, &team, limit);
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

// In f64 to 1e-9. In f32, where the order of sums is all that differs, at most twice as far from those of one rank, and from the exact ones, as
// those of one rank are from the exact ones.
TEST_F(LongContext, LossesOfFourRanksAreThoseOfOne) {
  const std::vector<double> exact = losses_of_one(kF64);
  ASSERT_EQ(exact.size(), size_t{kSteps});
  EXPECT_LT(exact.back(), 0.8 * exact.front());
  EXPECT_LE(largest_difference(losses_of_four(kF64), exact), 1e-9);
  const std::vector<double> one = losses_of_one(kF32), four = losses_of_four(kF32);
  const double rounding = largest_difference(one, exact);
  EXPECT_GT(rounding, 0);
  EXPECT_LE(largest_difference(four, one), 2 * rounding);
  EXPECT_LE(largest_difference(four, exact), 2 * rounding);
}

// Half way between what one rank takes and what each of four does.
TEST_F(LongContext, WhatDoesNotFitOneRankTrainsOnFour) {
  const std::vector<std::string> longer = {"model.context=1000", "train.micro_batch=1", "train.tokens=8000",
                                           "optim.schedule.wsd.warmup=2"};
  auto peak = [&](int ranks, DType compute) {
    MemorySubject subject = memory_subject(recipe(ranks, longer), 256, false);
    subject.compute = compute, subject.counts_bytes = false;
    return MemoryEstimator(subject).of(1).peak_bytes;
  };
  const int64_t limit = (peak(1, kF64) + peak(4, kF64)) / 2;
  EXPECT_LT(peak(4, kF64), peak(1, kF64) / 2);
  const std::vector<double> expected = losses_of_one(kF64, longer);
  ASSERT_EQ(expected.size(), 8u);
  EXPECT_EQ(test::error_of([&] { losses_of_one(kF64, longer, limit); }, {"out of memory: ", "train.memory_gib"}), "");
  EXPECT_LE(largest_difference(losses_of_four(kF64, longer, limit), expected), 1e-9);
  // Said before the run begins.
  std::vector<std::string> limited = longer;
  limited.push_back(
      fmt::format("train.memory_gib={}", static_cast<double>(peak(1, kF32) + peak(4, kF32)) / 2 / 1073741824));
  EXPECT_EQ(
      test::error_of([&] { check_memory(recipe(1, limited), 256, false); }, {"train.memory_gib is ", "Not even 1"}),
      "");
  EXPECT_GT(check_memory(recipe(4, limited), 256, false, 4).peak_bytes, 0);
}

}  // namespace
}  // namespace weft::train
