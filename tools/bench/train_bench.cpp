// `weft bench train`: whole training steps of GPT-2 shaped models (pre-LN, GELU 4d, tied head, AdamW), and what a step allocates.
#include <algorithm>
#include <array>
#include <functional>

#include "tools/bench/bench.h"
#include "tools/bench/training_step.h"
#include "weft/core/error.h"
#include "weft/core/parallel.h"

namespace weft::bench {

namespace {

constexpr StepShape kShapes[] = {
    {"L8 d512 h8 T1024 V8192 B4", 8, 512, 8, 1024, 8192, 4},
    {"L6 d384 h6 T512 V8192 B4", 6, 384, 6, 512, 8192, 4},
};

constexpr StepShape kCudaShapes[] = {
    {"L24 d1024 h16 T4096 V50304 B4", 24, 1024, 16, 4096, 50304, 4},  // about 350 M parameters
    {"L8 d512 h8 T1024 V8192 B4", 8, 512, 8, 1024, 8192, 4},
};

Row step_row(const StepShape& shape, DType compute, const BenchOptions& options) {
  TrainingStep step(gpt2_options(shape), shape.batch, compute);
  double first = step.run();
  step.run();  // warms the caches of allocator and products
  Allocator& memory = allocator(default_device());
  memory.reset_peak();
  int64_t before = memory.stats().num_system_allocations;
  double last = first;
  std::function<void()> run = [&] { last = step.run(); };
  Timing t = time_in_turn({&run, 1}, options.quick ? 4 : 20, 3)[0];
  MemoryStats stats = memory.stats();
  WEFT_CHECK(last < first, str("bench train: the loss went from ", first, " to ", last, " on one batch"),
             "a training step is broken");
  double rate = step.flops() / t.median_s;
  Row row = rate_row("step", shape.text, compute, rate / 1e9, "GFLOP/s", gemm_peak(compute) / 1e9);
  row.extra = {{"tokens/s", rounded(static_cast<double>(step.num_tokens()) / t.median_s)},
               {"peak MiB", rounded(static_cast<double>(stats.peak_bytes) / 1048576.0)},
               {"new blocks", str(stats.num_system_allocations - before)}};
  return row;
}

// Peak memory of a step of 4 micro-batches, beside that of 2: gradients of parameters are final while backward goes on, so that there is
// one set of them from the second micro-batch on.
Row micro_batch_row(const StepShape& shape, DType compute) {
  TrainingStep step(gpt2_options(shape), 1, compute);
  step.run();  // makes the optimiser's state
  auto peak_mib = [&](int micro_batches) {
    allocator(default_device()).reset_peak();
    step.run(false, micro_batches);
    return static_cast<double>(allocator(default_device()).stats().peak_bytes) / 1048576.0;
  };
  const double one = peak_mib(1), two = peak_mib(2), four = peak_mib(4);
  Row row = time_row("step of 4 micro-batches", shape.text, compute, four, "MiB", two);
  row.extra = {{"peak MiB 1", rounded(one)},
               {"peak MiB 2", rounded(two)},
               {"peak MiB 4", rounded(four)},
               {"gradients MiB", rounded(static_cast<double>(4 * step.num_params()) / 1048576.0)}};
  return row;
}

// A row that did not fit is a row without a rate.
Row step_row_or_problem(const StepShape& shape, DType compute, const BenchOptions& options) {
  try {
    return step_row(shape, compute, options);
  } catch (const Error& error) {
    if (error.problem().find("out of memory") == std::string::npos) throw;
    allocator(default_device()).trim();
    return {.name = "step",
            .shape = shape.text,
            .dtype = str(compute),
            .threads = num_threads(),
            .unit = "GFLOP/s",
            .extra = {{"problem", error.problem().substr(0, error.problem().find('\n'))}}};
  }
}

}  // namespace

std::vector<Row> run_train(const BenchOptions& options) {
  if (!options.mixer.empty()) return run_mixers(options);
  std::vector<Row> rows;
  std::span<const StepShape> shapes = default_device().is_cuda() ? std::span<const StepShape>(kCudaShapes) : kShapes;
  std::array<DType, 2> computes = {kF32, kBF16};
  if (default_device().is_cuda()) std::swap(computes[0], computes[1]);  // first what a GPU is for
  for (DType compute : computes)
    for (const StepShape& shape : shapes)
      if (!options.quick || &shape != &shapes[0])  // the large one takes minutes
        rows.push_back(step_row_or_problem(shape, compute, options));
  rows.push_back(micro_batch_row(kShapes[1], kF32));
  return rows;
}

}  // namespace weft::bench
