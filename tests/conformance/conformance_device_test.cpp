// The conformance suite's comparison with the CPU of every row of the table, mixers and residual streams, on a GPU or the emulator.
#include <gtest/gtest.h>

#include "trainers/conformance/conformance.h"
#include "weft/core/parallel.h"
#include "weft/core/stream.h"

namespace weft {
namespace {

using conformance::Verdict;

void expect_all_pass(std::span<const MixerRow> rows) {
  if (num_cuda_devices() == 0) GTEST_SKIP() << "no GPU: " << cuda_problem();
  set_num_threads(1);  // inputs are tiny: waiting for another thread would take longer than the work
  auto results = conformance::check_mixers(rows, {.check = "devices"});
  EXPECT_EQ(results.size(), rows.size());
  for (const auto& r : results) EXPECT_EQ(r.verdict, Verdict::passed) << r.variant << ": " << r.reason;
}

TEST(ConformanceOnDevices, EveryMixerEqualsTheCpu) { expect_all_pass(mixer_table()); }
TEST(ConformanceOnDevices, EveryResidualStreamEqualsTheCpu) { expect_all_pass(conformance::residual_rows()); }

}  // namespace
}  // namespace weft
