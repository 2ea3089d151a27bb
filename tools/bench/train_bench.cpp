// `weft bench train`: whole training steps of GPT-2 shaped models (pre-LN, GELU 4d, tied head, AdamW), and what a step allocates.
#include <cmath>
#include <functional>
#include <sstream>
#include <utility>
#include <vector>

#include "tools/bench/bench.h"
#include "tools/bench/step_shares.h"
#include "weft/core/error.h"
#include "weft/core/parallel.h"

namespace weft::bench {

namespace {

// What is asked of a row: its share of the limit, and the most percent of a step that may be neither products nor attention. 0: nothing.
struct Goals {
  double share = 0, most_other = 0;
};
struct CpuShape {
  StepShape shape;
  Goals f32, bf16;
};
constexpr CpuShape kCpuShapes[] = {
    {{"L8 d512 h8 T1024 V8192 B4", 8, 512, 8, 1024, 8192, 4}, {0.85}, {0.72}},
    {{"L6 d384 h6 T512 V8192 B4", 6, 384, 6, 512, 8192, 4}, {0.85}, {0.72}},
    {kSmallShape, {0.75, 10}, {0.60}},
};
constexpr Goals kQuickstartGoals = {0.70};

constexpr StepShape kCudaShapes[] = {
    {"L24 d1024 h16 T4096 V50304 B4", 24, 1024, 16, 4096, 50304, 4},  // about 350 M parameters
    {"L8 d512 h8 T1024 V8192 B4", 8, 512, 8, 1024, 8192, 4},
};

void add_shares(Row& row, TrainingStep& step, bool is_quick) {
  const StepShares shares = measured_shares(step, is_quick ? 3 : 5);
  auto add = [&](const char* heading, double percent) {
    row.extra.emplace_back(heading, str(std::round(10 * percent) / 10));
  };
  add("% products", shares.products);
  add("% attention", shares.attention);
  add("% update products", shares.update_products);
  add("% other", shares.other);
  add("% update", shares.update);
}

Row step_row(const char* name, const StepShape& shape, DType compute, const Goals& goals, bool is_quick,
             const LanguageModelOptions& model, std::vector<ParamGroup> groups = {}) {
  TrainingStep step(model, shape.batch, compute, std::move(groups));
  double first = step.run();
  step.run();  // warms the caches of allocator and products
  Allocator& memory = allocator(default_device());
  memory.reset_peak();
  int64_t before = memory.stats().num_system_allocations;
  double last = first;
  std::function<void()> run = [&] { last = step.run(); };
  Timing t = time_in_turn({&run, 1}, is_quick ? 4 : 20, is_quick ? 2 : 3)[0];
  MemoryStats stats = memory.stats();
  WEFT_CHECK(last < first, str("bench train: the loss went from ", first, " to ", last, " on one batch"),
             "a training step is broken");
  double rate = step.flops() / t.median_s;
  Row row = rate_row(name, shape.text, compute, rate / 1e9, "GFLOP/s", gemm_peak(compute) / 1e9);
  if (goals.share > 0) row.extra.emplace_back("goal", str(goals.share));
  if (goals.most_other > 0) row.extra.emplace_back("goal of other", str(goals.most_other));
  auto add = [&](const char* heading, std::string text) { row.extra.emplace_back(heading, std::move(text)); };
  add("tokens/s", rounded(static_cast<double>(step.num_tokens()) / t.median_s));
  add("ms", str(std::round(t.median_s * 1e5) / 100));
  add("best ms", str(std::round(t.best_s * 1e5) / 100));
  add("peak MiB", rounded(static_cast<double>(stats.peak_bytes) / 1048576.0));
  add("new blocks", str(stats.num_system_allocations - before));
  add_shares(row, step, is_quick);
  if (const double muon = step.muon_flops(); muon > 0)
    add("Muon's FLOPs, not counted", str("+", std::round(1000 * muon / step.flops()) / 10, " %"));
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
Row step_row_or_problem(const StepShape& shape, DType compute, const Goals& goals, bool is_quick) {
  try {
    return step_row("step", shape, compute, goals, is_quick, gpt2_options(shape));
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

struct Subject {
  std::string text;  // name, shape and dtype: what words are looked for in
  bool takes_minutes;
  std::function<Row()> measure;
};

std::vector<Subject> all_subjects(bool is_quick) {
  std::vector<Subject> all;
  const int64_t most_layers = default_device().is_cuda() ? 8 : 6;  // of what is quick
  auto add = [&](const char* name, const StepShape& shape, DType dtype, std::function<Row()> measure) {
    all.push_back({str(name, " ", shape.text, " ", dtype), shape.layers > most_layers, std::move(measure)});
  };
  auto add_step = [&](const StepShape& shape, DType compute, const Goals& goals) {
    add("step", shape, compute, [=] { return step_row_or_problem(shape, compute, goals, is_quick); });
  };
  const StepShape& middle = kCpuShapes[1].shape;
  if (default_device().is_cuda()) {
    for (DType compute : {kBF16, kF32})  // first what a GPU is for
      for (const StepShape& shape : kCudaShapes) add_step(shape, compute, {});
  } else {
    for (const CpuShape& s : kCpuShapes) add_step(s.shape, kF32, s.f32);
    for (const CpuShape& s : kCpuShapes) add_step(s.shape, kBF16, s.bf16);
    constexpr const char* kName = "quickstart's step";
    add(kName, kSmallShape, kF32, [=] {
      return step_row(kName, kSmallShape, kF32, kQuickstartGoals, is_quick, quickstart_options(kSmallShape),
                      quickstart_groups());
    });
  }
  constexpr const char* kName = "step of 4 micro-batches";
  add(kName, middle, kF32, [=] { return micro_batch_row(kName, middle, kF32); });
  return all;
}

// Those that have every word that was asked for; with --quick without words, those that do not take minutes.
std::vector<Subject> asked_subjects(const BenchOptions& options) {
  std::vector<Subject> all = all_subjects(options.quick), asked;
  std::string names;
  for (Subject& subject : all) {
    names += (names.empty() ? "" : "; ") + subject.text;
    std::istringstream words(options.rows);
    bool is_asked = !options.quick || !options.rows.empty() || !subject.takes_minutes;
    for (std::string word; words >> word;) is_asked &= subject.text.find(word) != std::string::npos;
    if (is_asked) asked.push_back(std::move(subject));
  }
  WEFT_CHECK(!asked.empty(), str("bench train: no row has each word of '", options.rows, "'"),
             str("use words of one of these: ", names));
  return asked;
}

}  // namespace

void check_train(const BenchOptions& options) {
  WEFT_CHECK(options.mixer.empty() || options.rows.empty(),
             str("bench train: rows of mixers have no words, and '", options.rows, "' is asked for"),
             "leave --rows or --mixer out");
  if (options.mixer.empty()) asked_subjects(options);
}

std::vector<Row> run_train(const BenchOptions& options) {
  check_train(options);
  if (!options.mixer.empty()) return run_mixers(options);
  std::vector<Row> rows;
  for (const Subject& subject : asked_subjects(options)) rows.push_back(subject.measure());
  return rows;
}

}  // namespace weft::bench
