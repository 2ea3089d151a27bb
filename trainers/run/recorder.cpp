#include "trainers/run/recorder.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numbers>
#include <set>

#include "trainers/run/value_pictures.h"
#include "weft/core/error.h"
#include "weft/io/files.h"
#include "weft/io/report.h"

namespace weft::train {

double wall_now_s() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

Recorder::Recorder(RunFolder& folder, cli::Console& console, const StepSizes& sizes,
                   std::vector<std::string> group_names, RecorderOptions options)
    : folder_(folder),
      console_(console),
      sizes_(sizes),
      group_names_(std::move(group_names)),
      options_(std::move(options)),
      metrics_(folder.file("metrics.jsonl")),
      progress_(cli::live_options(console.verbosity() == cli::Verbosity::quiet ? -1 : STDERR_FILENO),
                options_.log_every),
      peak_rate_(options_.peak_flops, options_.measure_peak_flops
                                          ? [this] { return peak_memory_.without(options_.measure_peak_flops); }
                                          : std::function<double()>()),
      samples_(folder.file("samples.txt")) {
  console_.attach(&progress_.lines());
}

Recorder::~Recorder() { console_.attach(nullptr); }

void Recorder::message(const std::string& line) {
  folder_.log(line);
  console_.message(line);
}

namespace {

// Samples of one step have tags of their own: a reader keeps one text of a tag and step.
std::string sample_tag(int64_t index) { return index == 0 ? "samples" : str("samples/", index + 1); }

}  // namespace

void Recorder::continue_from(int64_t step, const LineSums& line) {
  line_ = line;
  if (metrics_.last_step() >= 0) continued_from_ = step;
  const std::string aside = folder_.file("set-aside");
  if (metrics_.last_step() > step) {
    io::make_folders(aside);
    int64_t lines = metrics_.rewind(step, aside + "/metrics.jsonl");
    message(str(lines, " lines of metrics of later steps are moved to ", aside, "/metrics.jsonl"));
  }
  if (samples_.rewind(step, options_.samples, aside + "/samples.txt"))
    message(str("samples of later steps are moved to ", aside, "/samples.txt"));

  std::set<std::string, std::less<>> tags;  // of `step`
  for (io::MetricsRecord& record : io::apply_rewinds(io::read_metrics(folder_.file("metrics.jsonl")))) {
    if (record.step == step)
      for (const auto& [tag, value] : record.values) tags.insert(tag);
    last_[record.kind] = std::move(record);
  }
  for (int64_t i = 0; i < samples_.count(step); ++i) tags.insert(sample_tag(i));
  std::vector<std::string> problems;
  io::rewind_events(
      folder_.path(), step, [&](const io::EventValue& value) { return tags.contains(value.tag); }, problems);
  for (const std::string& problem : problems) message("warning: " + problem);
}

bool Recorder::has(const std::string& kind, int64_t step) const {
  const io::MetricsRecord* record = last(kind);
  return record && record->step == step;
}

const io::MetricsRecord* Recorder::last(const std::string& kind) const {
  auto at = last_.find(kind);
  return at == last_.end() ? nullptr : &at->second;
}

// Made with the first record, so that a start without one leaves no file. Readers that follow the folder drop what they had of
// steps that are recorded anew.
io::EventWriter* Recorder::events() {
  if (!options_.writes_events) return nullptr;
  if (events_) return events_.get();
  events_ = std::make_unique<io::EventWriter>(folder_.path(), wall_now_s());
  if (continued_from_) events_->start_session({.step = *continued_from_ + 1, .wall_s = wall_now_s()});
  return events_.get();
}

// Events before metrics: what a killed process left of a record in the events alone is cut by continue_from().
void Recorder::write(const std::string& kind, int64_t step, double time_s,
                     std::vector<std::pair<std::string, double>> values) {
  double now = wall_now_s();
  if (io::EventWriter* events = this->events()) {
    for (const auto& [tag, value] : values) events->scalar(tag, value, {.step = step, .wall_s = now});
    events->flush();
  }
  io::MetricsRecord record{.step = step,
                           .tokens = step * sizes_.tokens_per_step,
                           .time_s = time_s,
                           .wall_s = now,
                           .kind = kind,
                           .values = std::move(values)};
  metrics_.write(record);
  last_[kind] = std::move(record);
}

void Recorder::sync() {
  metrics_.sync();
  if (events_) events_->sync();
}

void Recorder::diagnostics(const StepResult& result, int64_t step, double time_s) {
  if (!result.diagnostics.empty()) write("diagnostics", step, time_s, result.diagnostics);
}

void Recorder::step(const StepResult& result, int64_t step, std::span<const double> rates, double time_s, double step_s,
                    int64_t num_skipped) {
  clock_.add(step_s);
  line_.loss += result.loss;
  line_.nats += result.byte_nats;
  line_.bytes += result.num_bytes;
  line_.seconds += step_s;
  ++line_.steps;
  double tokens = static_cast<double>(line_.steps * sizes_.tokens_per_step);
  const int64_t peak_bytes = peak_memory_.bytes();

  status_.step = step;
  status_.steps = sizes_.steps;
  status_.loss = result.loss;
  status_.grad_norm = result.grad_norm;
  status_.lr = rates.empty() ? 0 : rates[0];
  status_.tokens_per_s = tokens / line_.seconds;
  if (options_.peak_flops > 0) {
    status_.mfu = peak_rate_.utilisation(*status_.tokens_per_s * options_.flops_per_token);
    if (!peak_rate_.note().empty()) message(peak_rate_.note());
  }
  status_.memory_bytes = peak_bytes;
  status_.bits_per_byte = std::nullopt;
  if (line_.bytes > 0) status_.bits_per_byte = line_.nats / (std::numbers::ln2 * static_cast<double>(line_.bytes));
  if (auto median = clock_.median_s()) status_.eta_s = *median * static_cast<double>(sizes_.steps - step);
  status_.num_skipped = num_skipped;
  progress_.update(status_);

  if (step % options_.log_every != 0 && step != sizes_.steps) return;
  status_.loss =
      line_.loss / static_cast<double>(line_.steps);  // the mean since the last line, as the terminal shows it
  std::vector<std::pair<std::string, double>> values{{"train/loss", status_.loss}};
  if (status_.bits_per_byte) values.emplace_back("train/bpb", *status_.bits_per_byte);
  values.emplace_back("train/grad_norm", result.grad_norm);
  for (size_t i = 0; i < rates.size(); ++i) values.emplace_back("train/lr/" + group_names_[i], rates[i]);
  values.emplace_back("train/skipped", static_cast<double>(num_skipped));
  values.emplace_back("speed/tokens_per_second", *status_.tokens_per_s);
  if (status_.mfu) values.emplace_back("speed/mfu", *status_.mfu);
  values.emplace_back("memory/peak_gib", static_cast<double>(peak_bytes) / 1073741824.0);
  folder_.log(cli::plain_line(status_));
  write("train", step, time_s, std::move(values));
  line_ = {};
}

void Recorder::validation(const Evaluation& evaluation, int64_t step, double time_s, bool is_best) {
  message(str("step ", step, ": ", evaluation.text(), " (", evaluation.num_targets, " targets)"));
  const auto num_targets = static_cast<double>(evaluation.num_targets);
  if (!evaluation.has_targets()) return write("val", step, time_s, {{"val/targets", num_targets}});  // it was looked at
  status_.val = evaluation.loss();
  status_.val_step = step;
  if (is_best) status_.best_val = evaluation.loss();
  std::vector<std::pair<std::string, double>> values{{"val/loss", evaluation.loss()}};
  if (!std::isnan(evaluation.standard_error)) values.emplace_back("val/loss_se", evaluation.standard_error);
  values.emplace_back("val/ppl", evaluation.perplexity());
  if (evaluation.num_bytes > 0) values.emplace_back("val/bpb", evaluation.bits_per_byte());
  values.emplace_back("val/targets", num_targets);
  write("val", step, time_s, std::move(values));
}

void Recorder::sample(int64_t step, const std::string& text) {
  if (io::EventWriter* events = this->events()) {
    events->text(sample_tag(samples_.count(step)), text, {.step = step, .wall_s = wall_now_s()});
    events->flush();
  }
  samples_.add(step, text);
}

std::string Recorder::report(const std::vector<std::pair<std::string, std::string>>& facts, const std::string& title,
                             std::function<bool()> is_stopping) {
  auto records = io::apply_rewinds(io::read_metrics(folder_.file("metrics.jsonl")));
  std::vector<io::Plot> plots = io::plots_of(records);
  for (io::Plot& plot : plots)
    for (io::PlotSeries& series : plot.series)
      for (size_t i = 0; i < std::min(group_names_.size(), options_.group_labels.size()); ++i)
        if (plot.title == io::kRatesTitle && series.name == group_names_[i]) series.name = options_.group_labels[i];
  io::ReportData data{.title = title,
                      .facts = facts,
                      .plots = std::move(plots),
                      .sections = value_sections(records),
                      .config = folder_.config_text(),
                      .is_stopping = std::move(is_stopping)};
  for (const Sample& sample : samples_.all()) data.samples.emplace_back(str("step ", sample.step), sample.text);
  for (const std::string& warning : io::write_report(report_path(), data)) message("warning: " + warning);
  return report_path();
}

}  // namespace weft::train
