// Decoding, probes and analyses of ranks that share one GPU give what one rank gives on the CPU.
#include "tests/nn/analysis_support.h"
#include "tests/nn/decode_support.h"
#include "weft/core/stream.h"
#include "weft/models/sample.h"

namespace weft {
namespace {

using namespace analysis_test;

class RanksOfAGpu : public ::testing::Test {
  void SetUp() override {
    if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU: " << cuda_problem();
  }
};

TEST_F(RanksOfAGpu, TextsAreThoseOfOneRankOfTheCpu) {
  const std::vector<int32_t> prompt{3, 1, 4, 1, 5};
  for (const LanguageModelOptions& options : mixing_test::decoded_models()) {
    auto text = [&](dist::Communicator* ranks) {
      LanguageModel model(options, Rng(2));
      model.set_compute(kF64);
      EXPECT_EQ(model.params()[0].param->value().is_cuda(), ranks != nullptr);
      return sample(model, prompt, {.tokens = 12, .temperature = 1, .seed = 5, .ranks = ranks});
    };
    const std::vector<int32_t> expected = text(nullptr);
    for (int ranks : {2, 3})
      dist::run_thread_ranks(ranks, [&](dist::Communicator& comm) {
        set_default_device(Device::cuda());
        EXPECT_EQ(text(&comm), expected) << ranks << " ranks";
      });
  }
}

constexpr Spread kSpreadsHere[] = {{dist::LayoutKind::zigzag, dist::Scheme::ring, 2},
                                   {dist::LayoutKind::contiguous, dist::Scheme::all_gather, 3},
                                   {dist::LayoutKind::striped, dist::Scheme::ulysses, 2}};

TEST_F(RanksOfAGpu, ProbesSeeWhatOneRankOfTheCpuShows) {
  for (const LanguageModelOptions& options : models()) {
    std::mutex mutex;
    Shown expected;
    watch(*make_model(options), analysed(rows(true), true, nullptr), expected, mutex);
    for (const Spread& s : kSpreadsHere) {
      Shown got;
      on_ranks(
          s, true,
          [&](const AnalysisRows& mine, dist::Communicator&) { watch(*make_model(options), mine, got, mutex); },
          Device::cuda());
      expect_near(got, expected, to_string(s));
    }
  }
}

TEST_F(RanksOfAGpu, AnalysesHaveTheFiguresOfOneRankOfTheCpu) {
  const LanguageModelOptions options = models()[0];
  const Figures expected = figures_of(*make_model(options), analysed(rows(true), true, nullptr));
  for (const Spread& s : {kSpreadsHere[0], kSpreadsHere[2]}) {
    std::mutex mutex;
    std::vector<Figures> got;
    on_ranks(
        s, true,
        [&](const AnalysisRows& mine, dist::Communicator&) {
          Figures figures = figures_of(*make_model(options), mine);
          std::lock_guard lock(mutex);
          got.push_back(std::move(figures));
        },
        Device::cuda());
    for (const Figures& of_rank : got) expect_near(of_rank, expected, to_string(s));
  }
}

}  // namespace
}  // namespace weft
