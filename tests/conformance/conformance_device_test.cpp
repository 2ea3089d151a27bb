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
  for (size_t i = 0; i < results.size(); ++i) {
    const bool is_missing = !rows[i].lacks.devices.empty();
    EXPECT_EQ(results[i].verdict, is_missing ? Verdict::unsupported : Verdict::passed)
        << results[i].variant << ": " << results[i].reason;
  }
}

TEST(ConformanceOnDevices, EveryMixerEqualsTheCpu) { expect_all_pass(mixer_table()); }
TEST(ConformanceOnDevices, EveryResidualStreamEqualsTheCpu) { expect_all_pass(conformance::residual_rows()); }

}  // namespace
}  // namespace weft
