// Residual streams: step time and memory against the standard one.
#include <algorithm>
#include <cmath>

#include "tools/bench/bench.h"
#include "tools/bench/training_step.h"
#include "weft/core/error.h"

namespace weft::bench {

namespace {

constexpr StepShape kShape{"L24 d512 h8 T1024 V8192 B1", 24, 512, 8, 1024, 8192, 1};
constexpr StepShape kQuickShape{"L6 d256 h4 T256 V1024 B1", 6, 256, 4, 256, 1024, 1};

struct Case {
  const char* name;
  ResidualMaker make;
  double goal;  // share of the standard stream's step
};

}  // namespace

std::vector<Row> run_residual(const BenchOptions& options) {
  const StepShape& shape = options.quick ? kQuickShape : kShape;
  auto routed = [](ResidualSources sources, ResidualCombine combine) {
    return RoutedResidualOptions{.sources = sources, .combine = combine, .blocks = 8};
  };
  using enum ResidualSources;
  using enum ResidualCombine;
  const Case cases[] = {{"standard", StandardResidualOptions{}, 1},
                        {"attention, full", routed(outputs, replace), 1.2},
                        {"attention, 8 blocks", routed(block_sums, replace), 1.05},
                        {"delta, full", routed(outputs, add), 1.2},
                        {"delta, 8 blocks", routed(block_sums, add), 1.05}};
  std::vector<std::unique_ptr<TrainingStep>> steps;
  std::vector<double> peaks;
  std::vector<std::function<void()>> functions;
  Allocator& memory = allocator(default_device());
  for (const Case& c : cases) {
    LanguageModelOptions o = gpt2_options(shape, PositionKind::rotary);
    o.residual = c.make;
    steps.push_back(std::make_unique<TrainingStep>(o, shape.batch, kF32));
    steps.back()->run();
    int64_t before = memory.stats().current_bytes;
    memory.reset_peak();
    steps.back()->run();
    peaks.push_back(static_cast<double>(memory.stats().peak_bytes - before) / 1048576);
    functions.push_back([step = steps.back().get()] { step->run(); });
  }
  std::vector<double> median = ratios_in_turn(functions, options.quick ? 3 : 5);
  const double source = static_cast<double>(shape.tokens * shape.dim * shape.batch) * 4 / 1048576;
  std::vector<Row> rows;
  for (size_t i = 0; i < std::size(cases); ++i) {
    double share = i == 0 ? 1 : median[i];
    Row row = time_row(cases[i].name, shape.text, kF32, 1e3 * median[0] * share, "ms", 1e3 * median[0] * cases[i].goal);
    row.extra = {{"of standard's time", str(std::round(share * 1000) / 1000)},
                 {"step MiB", rounded(peaks[i])},
                 {"more, in sources", rounded((peaks[i] - peaks[0]) / source)}};
    rows.push_back(row);
  }
  return rows;
}

}  // namespace weft::bench
