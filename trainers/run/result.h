// What a finished run has to say, taken from its records: the same at its end and whenever it is started again.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "trainers/run/prediction.h"
#include "trainers/run/recorder.h"

namespace weft::train {

struct RunResult {
  std::string run, report;  // paths
  int64_t params = 0, steps = 0, tokens = 0;
  double time_s = 0;  // of training
  int64_t num_skipped = 0;
  Prediction predicted = {};
  std::optional<double> step_s = {};       // the median step of this process
  std::optional<int64_t> sent_bytes = {};  // in a step, of the first of several ranks
  std::optional<double> train_loss = {}, tokens_per_s = {}, peak_bytes = {};  // of the last line
  std::optional<double> val_loss = {}, val_loss_se = {}, val_ppl = {}, val_bpb = {};
  std::optional<std::string> sample = {};  // the last one
};

// `recorder` of a run whose last step is done; the other fields are the caller's.
RunResult with_records(RunResult result, const Recorder& recorder);

// Times and messages of the process that took the last step, beside what its start predicted: a file of the run, so that later starts of a
// finished run say the same. Reading leaves the result as it is where there is no such file.
void write_measured(const RunResult& result, const std::string& file);
void read_measured(RunResult& result, const std::string& file);

std::vector<std::pair<std::string, std::string>> facts(const RunResult& result);  // of the report
std::string summary(const RunResult& result);                                     // one line, for the log
std::string result_text(const RunResult& result, bool is_json);                   // on stdout

}  // namespace weft::train
