// `weft bench train`: whole training steps of GPT-2 shaped models (pre-LN, GELU 4d, tied head, AdamW), and what a step allocates.
#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <sstream>

#include "tools/bench/bench.h"
#include "tools/bench/training_step.h"
#include "weft/core/error.h"
#include "weft/core/parallel.h"
#include "weft/core/profile.h"

namespace weft::bench {

namespace {

constexpr StepShape kShapes[] = {
    {"L8 d512 h8 T1024 V8192 B4", 8, 512, 8, 1024, 8192, 4},
    {"L6 d384 h6 T512 V8192 B4", 6, 384, 6, 512, 8192, 4},
    {"L4 d128 h4 T256 V256 B16", 4, 128, 4, 256, 256, 16},
};

constexpr StepShape kCudaShapes[] = {
    {"L24 d1024 h16 T4096 V50304 B4", 24, 1024, 16, 4096, 50304, 4},  // about 350 M parameters
    {"L8 d512 h8 T1024 V8192 B4", 8, 512, 8, 1024, 8192, 4},
};

// Where a step's time goes, in shares: products, attention, and what is neither, of which the update is a part.
void add_shares(Row& row, TrainingStep& step) {
  Profile profile(default_device());
  step.run();
  double products = 0, attention = 0, update = 0, all = 0;
  for (const SelfTime& time : self_times(profile.finish())) {
    all += time.us;
    if (time.name.ends_with(" attention")) attention += time.us;
    else if (time.name.starts_with("update")) update += time.us;
    else if (time.name.ends_with(" matmul")) products += time.us;
  }
  auto share = [&](double us) { return str(std::round(1000 * us / all) / 10); };
  row.extra.emplace_back("% products", share(products));
  row.extra.emplace_back("% attention", share(attention));
  row.extra.emplace_back("% other", share(all - products - attention));
  row.extra.emplace_back("% update", share(update));
}

Row step_row(const char* name, const StepShape& shape, DType compute, const BenchOptions& options,
             const LanguageModelOptions& model, std::vector<ParamGroup> groups = {}) {
  TrainingStep step(model, shape.batch, compute, std::move(groups));
  double first = step.run();
  step.run();  // warms the caches of allocator and products
  Allocator& memory = allocator(default_device());
  memory.reset_peak();
  int64_t before = memory.stats().num_system_allocations;
  double last = first;
  std::function<void()> run = [&] { last = step.run(); };
  Timing t = time_in_turn({&run, 1}, options.quick ? 4 : 20, options.quick ? 2 : 3)[0];
  MemoryStats stats = memory.stats();
  WEFT_CHECK(last < first, str("bench train: the loss went from ", first, " to ", last, " on one batch"),
             "a training step is broken");
  double rate = step.flops() / t.median_s;
  Row row = rate_row(name, shape.text, compute, rate / 1e9, "GFLOP/s", gemm_peak(compute) / 1e9);
  row.extra = {{"tokens/s", rounded(static_cast<double>(step.num_tokens()) / t.median_s)},
               {"ms", str(std::round(t.median_s * 1e5) / 100)},
               {"best ms", str(std::round(t.best_s * 1e5) / 100)},
               {"peak MiB", rounded(static_cast<double>(stats.peak_bytes) / 1048576.0)},
               {"new blocks", str(stats.num_system_allocations - before)}};
  add_shares(row, step);
  if (const double muon = step.muon_flops(); muon > 0)
    row.extra.emplace_back("Muon's FLOPs, not counted", str("+", std::round(1000 * muon / step.flops()) / 10, " %"));
  return row;
}

// Peak memory of a step of 4 micro-batches, beside that of 2: gradients of parameters are final while backward goes on, so that there is
// one set of them from the second micro-batch on.
Row micro_batch_row(const char* name, const StepShape& shape, DType compute) {
  TrainingStep step(gpt2_options(shape), 1, compute);
  step.run();  // makes the optimiser's state
  auto peak_mib = [&](int micro_batches) {
    allocator(default_device()).reset_peak();
    step.run(false, micro_batches);
    return static_cast<double>(allocator(default_device()).stats().peak_bytes) / 1048576.0;
  };
  const double one = peak_mib(1), two = peak_mib(2), four = peak_mib(4);
  Row row = time_row(name, shape.text, compute, four, "MiB", two);
  row.extra = {{"peak MiB 1", rounded(one)},
               {"peak MiB 2", rounded(two)},
               {"peak MiB 4", rounded(four)},
               {"gradients MiB", rounded(static_cast<double>(4 * step.num_params()) / 1048576.0)}};
  return row;
}

// A row that did not fit is a row without a rate.
Row step_row_or_problem(const StepShape& shape, DType compute, const BenchOptions& options) {
  try {
    return step_row("step", shape, compute, options, gpt2_options(shape));
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

// Whether a row has every word that was asked for.
bool is_asked(const BenchOptions& options, const char* name, const char* shape, DType dtype) {
  const std::string text = str(name, " ", shape, " ", dtype);
  std::istringstream words(options.rows);
  for (std::string word; words >> word;)
    if (text.find(word) == std::string::npos) return false;
  return true;
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
      if (is_asked(options, "step", shape.text, compute) &&
          (!options.quick || !options.rows.empty() || &shape != &shapes[0]))  // it takes minutes
        rows.push_back(step_row_or_problem(shape, compute, options));
  constexpr const char* kQuickstart = "quickstart's step";
  const StepShape& small = kShapes[2];
  if (!default_device().is_cuda() && is_asked(options, kQuickstart, small.text, kF32))
    rows.push_back(step_row(kQuickstart, small, kF32, options, quickstart_options(small), quickstart_groups()));
  constexpr const char* kMicroBatches = "step of 4 micro-batches";
  if (is_asked(options, kMicroBatches, kShapes[1].text, kF32))
    rows.push_back(micro_batch_row(kMicroBatches, kShapes[1], kF32));
  return rows;
}

}  // namespace weft::bench
