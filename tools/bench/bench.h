// The frame of all benchmarks: rows, timing in turn, limits measured in the same run, printing.
// A family is one file with `std::vector<Row> run_<family>(const BenchOptions&)` and one line in families.cpp. It checks its
// results against a float64 reference before it times anything.
//
// Own timing instead of Google Benchmark: value and limit have to be measured in turn, so that both meet the same machine.
#pragma once

#include <cstdio>
#include <functional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "weft/core/dtype.h"
#include "weft/models/language_model.h"

namespace weft::bench {

// What `weft bench ring` measures. Axes that are empty have one value; if all are, what is measured are the rows of which something is
// expected.
struct RingOptions {
  std::vector<std::string> kernels = {}, schemes = {}, masks = {}, layouts = {};
  std::vector<int64_t> tokens = {}, ranks = {};
  std::string documents = {};  // file of lengths; empty: those of a pretraining corpus
  std::string picture = {};    // SVG file of layouts and hop plans to write

  bool has_axis() const {
    return !(kernels.empty() && schemes.empty() && masks.empty() && layouts.empty() && tokens.empty() && ranks.empty());
  }
};

struct BenchOptions {
  bool quick = false;  // at most 30 s for a family
  double effort = 1;   // recurrence, of quick: share of its times and lengths; below 1 for tests, where no time counts
  bool plan_only = false;  // ring: no measurements
  std::string rows = {};   // train: only rows that have each of these words in name, shape or dtype
  RingOptions ring = {};
  std::string mixer = {};  // train: rows of the table of mixers in place of plain attention; a name, or all
  std::vector<MixerRow> mixers =
      {};  // the program's own, beside the table: sizes come from MixerArgs and the row's numbers
  // The program's own parts of other kinds, by name; each makes a model one with the part.
  std::vector<std::pair<std::string, std::function<void(LanguageModelOptions&)>>> parts = {};
};

struct Row {
  std::string name, shape, dtype;
  int threads = 1;
  double value = 0;
  std::string unit;  // "GFLOP/s", "us", ...
  double limit = 0;  // best possible, measured in the same run, or the goal of a time; in the same unit
  double ratio = 0;  // share of the limit that is reached: value / limit of a rate, limit / value of a time
  std::vector<std::pair<std::string, std::string>> extra = {};  // further columns of the table: (heading, text)
};

// Where, when and with what rows were measured: (name, text).
using Facts = std::vector<std::pair<std::string, std::string>>;

Row rate_row(std::string name, std::string shape, DType dtype, double value, std::string unit, double limit);
Row time_row(std::string name, std::string shape, DType dtype, double value, std::string unit, double limit);

double now_s();  // of a clock that does not jump
struct Timing {
  double best_s = 0, median_s = 0;  // of one call
};
// Runs the functions in turn, round after round, for about budget_s in all and at least min_rounds; calls shorter than
// 1 ms (on a GPU, where a round ends with waiting for it, 10 ms) are repeated within a round. Compare best with best: it is the least disturbed on a machine that others use too.
// Median over rounds of each function's time over that of the first in the same round, the first's own time in front.
std::vector<double> ratios_in_turn(std::span<const std::function<void()>> functions, int rounds);
std::vector<Timing> time_in_turn(std::span<const std::function<void()>> functions, double budget_s, int min_rounds = 3);

// The best rate of matrix products of a dtype, in FLOP/s, that oneDNN shows on this machine, or cuBLASLt called directly on the default
// device, over several shapes and routes; measured once per thread count. Of bf16 without hardware support that is the rate of f32.
double gemm_peak(DType dtype);
void forget_gemm_peaks();  // so that another run measures its own limits
double
memory_bandwidth();  // bytes read plus bytes written per second by a copy far larger than the caches, on the default device

struct Family {
  const char* name;
  const char* what;  // one line of help
  std::vector<Row> (*run)(const BenchOptions&);
  void (*check)(const BenchOptions&) =
      nullptr;  // Error where options name rows that there are not; before anything is measured
  const char* why_not_on_gpu = "";
};
std::span<const Family> families();
const Family& family(std::string_view name);  // Error that names all families

// Of runs that measured the same rows: each row as the run measured it that has the middle one of its ratios (of an even number of runs the
// lower middle), with the lowest and the highest ratio beside it.
std::vector<Row> middle_rows(std::span<const std::vector<Row>> runs);

void print_table(std::span<const Row> rows, const Facts& facts, std::FILE* to);
void print_json(std::span<const Row> rows, const Facts& facts,
                std::FILE* to);  // {"facts": {...}, "rows": [{"name", ...}]}

std::vector<Row> run_gemm(const BenchOptions& options);
std::vector<Row> run_attention(const BenchOptions& options);
std::vector<Row> run_recurrence(const BenchOptions& options);
std::vector<Row> run_memory(const BenchOptions& options);
std::vector<Row> run_call(const BenchOptions& options);
std::vector<Row> run_train(const BenchOptions& options);
std::vector<Row> run_mixers(const BenchOptions& options);  // train, of the mixers that options name
std::vector<Row> run_heads(const BenchOptions& options);
std::vector<Row> run_diagnostics(const BenchOptions& options);
std::vector<Row> run_ring(const BenchOptions& options);
std::vector<Row> run_residual(const BenchOptions& options);

void check_train(const BenchOptions& options);
void check_ring(const BenchOptions& options);
std::vector<Row> cpu_attention_rows();  // what run_attention() measures of rates, without values

}  // namespace weft::bench
