#include "trainers/recorder.h"

#include <unistd.h>

#include <chrono>
#include <fstream>
#include <numbers>

#include "weft/core/allocator.h"
#include "weft/core/error.h"
#include "weft/io/files.h"
#include "weft/io/report.h"

namespace weft::train {

double wall_now_s() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

Recorder::Recorder(RunFolder& folder, cli::Console& console, const Plan& plan, std::vector<std::string> group_names,
                   RecorderOptions options)
    : folder_(folder),
      console_(console),
      plan_(plan),
      group_names_(std::move(group_names)),
      options_(options),
      metrics_(folder.file("metrics.jsonl")),
      progress_(cli::live_options(console.verbosity() == cli::Verbosity::quiet ? -1 : STDERR_FILENO),
                options.log_every) {
  if (options_.writes_events) events_ = std::make_unique<io::EventWriter>(folder.path(), wall_now_s());
  console_.attach(&progress_.lines());
}

Recorder::~Recorder() { console_.attach(nullptr); }

void Recorder::message(const std::string& line) {
  folder_.log(line);
  console_.message(line);
}

void Recorder::write(const std::string& kind, int64_t step, double time_s,
                     std::vector<std::pair<std::string, double>> values) {
  double now = wall_now_s();
  if (events_) {
    for (const auto& [tag, value] : values) events_->scalar(tag, value, {.step = step, .wall_s = now});
    events_->flush();
  }
  metrics_.write({.step = step,
                  .tokens = step * plan_.tokens_per_step,
                  .time_s = time_s,
                  .wall_s = now,
                  .kind = kind,
                  .values = std::move(values)});
}

void Recorder::diagnostics(const StepResult& result, int64_t step, double time_s) {
  if (!result.diagnostics.empty()) write("diagnostics", step, time_s, result.diagnostics);
}

void Recorder::step(const StepResult& result, int64_t step, std::span<const double> rates, double time_s, double step_s,
                    int64_t num_skipped) {
  clock_.add(step_s);
  loss_sum_ += result.loss;
  nats_ += result.byte_nats;
  bytes_ += result.num_bytes;
  seconds_ += step_s;
  ++steps_;
  double tokens = static_cast<double>(steps_ * plan_.tokens_per_step);
  int64_t peak_bytes = allocator(default_device()).stats().peak_bytes;

  status_.step = step;
  status_.steps = plan_.steps;
  status_.loss = result.loss;
  status_.grad_norm = result.grad_norm;
  status_.lr = rates.empty() ? 0 : rates[0];
  status_.tokens_per_s = tokens / seconds_;
  status_.mfu = options_.peak_flops > 0
                    ? std::optional(*status_.tokens_per_s * options_.flops_per_token / options_.peak_flops)
                    : std::nullopt;
  status_.memory_bytes = peak_bytes;
  if (bytes_ > 0) status_.bits_per_byte = nats_ / (std::numbers::ln2 * static_cast<double>(bytes_));
  if (auto median = clock_.median_s()) status_.eta_s = *median * static_cast<double>(plan_.steps - step);
  status_.num_skipped = num_skipped;
  progress_.update(status_);

  if (step % options_.log_every != 0 && step != plan_.steps) return;
  tokens_per_s_ = *status_.tokens_per_s;
  status_.loss = loss_sum_ / static_cast<double>(steps_);  // the mean since the last line, as the terminal shows it
  std::vector<std::pair<std::string, double>> values{{"train/loss", status_.loss}};
  if (status_.bits_per_byte) values.emplace_back("train/bpb", *status_.bits_per_byte);
  values.emplace_back("train/grad_norm", result.grad_norm);
  for (size_t i = 0; i < rates.size(); ++i) values.emplace_back("train/lr/" + group_names_[i], rates[i]);
  values.emplace_back("train/skipped", static_cast<double>(num_skipped));
  values.emplace_back("speed/tokens_per_second", tokens_per_s_);
  if (status_.mfu) values.emplace_back("speed/mfu", *status_.mfu);
  values.emplace_back("memory/peak_gib", static_cast<double>(peak_bytes) / 1073741824.0);
  folder_.log(cli::plain_line(status_));
  write("train", step, time_s, std::move(values));
  loss_sum_ = seconds_ = nats_ = 0;
  steps_ = bytes_ = 0;
}

void Recorder::validation(const Evaluation& evaluation, int64_t step, double time_s, bool is_best) {
  status_.val = evaluation.loss();
  status_.val_step = step;
  if (is_best) status_.best_val = evaluation.loss();
  std::vector<std::pair<std::string, double>> values{{"val/loss", evaluation.loss()},
                                                     {"val/loss_se", evaluation.standard_error},
                                                     {"val/ppl", evaluation.perplexity()}};
  if (evaluation.num_bytes > 0) values.emplace_back("val/bpb", evaluation.bits_per_byte());
  message(str("step ", step, ": ", evaluation.text(), " (", evaluation.num_targets, " targets)"));
  write("val", step, time_s, std::move(values));
}

void Recorder::sample(int64_t step, const std::string& prompt, const std::string& text) {
  samples_.emplace_back(str("step ", step), prompt + text);
  std::ofstream out(folder_.file("samples.txt"), std::ios::app | std::ios::binary);
  out << "=== step " << step << "\n" << prompt << text << "\n";
  WEFT_CHECK(out.flush(), str("cannot write ", folder_.file("samples.txt")), "free some space on the disk");
  if (events_) events_->text("samples", prompt + text, {.step = step, .wall_s = wall_now_s()});
}

std::string Recorder::report(const std::vector<std::pair<std::string, std::string>>& facts, const std::string& title) {
  auto records = io::apply_rewinds(io::read_metrics(folder_.file("metrics.jsonl")));
  io::ReportData data{.title = title,
                      .facts = facts,
                      .plots = io::plots_of(records),
                      .samples = samples_,
                      .config = folder_.config_text()};
  std::string path = folder_.file("report.html");
  for (const std::string& warning : io::write_report(path, data)) message("warning: " + warning);
  return path;
}

}  // namespace weft::train
