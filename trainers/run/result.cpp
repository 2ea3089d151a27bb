#include "trainers/run/result.h"

#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "trainers/console/json_text.h"
#include "trainers/run/evaluate.h"
#include "weft/core/error.h"
#include "weft/io/files.h"

namespace weft::train {

static std::string mebibytes(double bytes) { return fmt::format("{:.1f} MiB", bytes / 1048576.0); }
static std::string milliseconds(double s) { return fmt::format("{:.4g} ms", 1000 * s); }

namespace {

std::optional<double> value(const Recorder& recorder, const char* kind, const char* key) {
  const io::MetricsRecord* record = recorder.last(kind);
  return record ? record->value(key) : std::nullopt;
}

std::string validation(const RunResult& r) {
  return validation_text(*r.val_loss, r.val_loss_se.value_or(std::nan("")), r.val_ppl.value_or(std::exp(*r.val_loss)),
                         r.val_bpb);
}

// 1234567 as "1 234 567".
std::string with_thousands(int64_t number) {
  const std::string digits = str(number);
  std::string text;
  for (size_t i = 0; i < digits.size(); ++i) {
    bool begins_group = i > 0 && (digits.size() - i) % 3 == 0 && digits[i - 1] != '-';
    if (begins_group) text += ' ';
    text += digits[i];
  }
  return text;
}

std::string skipped(const RunResult& r) { return str(r.num_skipped, " of ", r.steps, " steps skipped"); }

}  // namespace

RunResult with_records(RunResult result, const Recorder& recorder) {
  result.train_loss = value(recorder, "train", "train/loss");
  result.tokens_per_s = value(recorder, "train", "speed/tokens_per_second");
  if (auto gib = value(recorder, "train", "memory/peak_gib")) result.peak_bytes = *gib * 1073741824.0;
  if (recorder.has("val", result.steps)) {
    result.val_loss = value(recorder, "val", "val/loss");
    result.val_loss_se = value(recorder, "val", "val/loss_se");
    result.val_ppl = value(recorder, "val", "val/ppl");
    result.val_bpb = value(recorder, "val", "val/bpb");
  }
  const std::vector<Sample>& samples = recorder.samples().all();
  if (!samples.empty() && samples.back().step == result.steps) result.sample = samples.back().text;
  return result;
}

void write_measured(const RunResult& r, const std::string& file) {
  nlohmann::ordered_json out;
  if (r.step_s) out["step_s"] = *r.step_s;
  if (r.predicted.step_s > 0) out["predicted_step_s"] = r.predicted.step_s;
  if (r.sent_bytes) out["sent_bytes"] = *r.sent_bytes, out["predicted_sent_bytes"] = r.predicted.sent_bytes;
  io::write_file_atomically(file, cli::json_text(out));
}

void read_measured(RunResult& r, const std::string& file) {
  if (!io::file_exists(file)) return;
  const auto in = nlohmann::json::parse(io::read_file(file, uint64_t{1} << 16), nullptr, false);
  if (!in.is_object()) return;  // a damaged note of times is no reason to refuse a run
  auto number = [&](const char* key) {
    const auto at = in.find(key);
    return at != in.end() && at->is_number() ? std::optional(at->get<double>()) : std::nullopt;
  };
  r.step_s = number("step_s");
  r.predicted.step_s = number("predicted_step_s").value_or(0);
  if (auto bytes = number("sent_bytes")) r.sent_bytes = std::llround(*bytes);
  if (auto bytes = number("predicted_sent_bytes")) r.predicted.sent_bytes = std::llround(*bytes);
}

std::vector<std::pair<std::string, std::string>> facts(const RunResult& r) {
  std::vector<std::pair<std::string, std::string>> facts;
  if (r.val_loss) {
    const std::string error = r.val_loss_se ? fmt::format(" +- {:.4f}", *r.val_loss_se) : "";
    facts.emplace_back("validation loss", fmt::format("{:.4f}{} nats per token", *r.val_loss, error));
    if (r.val_ppl) facts.emplace_back("perplexity", fmt::format("{:.4g}", *r.val_ppl));
    if (r.val_bpb) facts.emplace_back("bits per byte", fmt::format("{:.4f}", *r.val_bpb));
  }
  facts.emplace_back("parameters", with_thousands(r.params));
  facts.emplace_back("steps", str(r.steps));
  if (r.num_skipped > 0) facts.emplace_back("skipped", skipped(r));
  facts.emplace_back("tokens", with_thousands(r.tokens));
  facts.emplace_back("training time", cli::duration_text(r.time_s));
  if (r.tokens_per_s) facts.emplace_back("tokens per second", with_thousands(std::llround(*r.tokens_per_s)));
  if (r.peak_bytes) facts.emplace_back("peak memory", mebibytes(*r.peak_bytes));
  facts.emplace_back("predicted peak", mebibytes(static_cast<double>(r.predicted.peak_bytes)));
  if (r.step_s) facts.emplace_back("step", milliseconds(*r.step_s));
  if (r.predicted.step_s > 0) facts.emplace_back("predicted step", milliseconds(r.predicted.step_s));
  if (r.sent_bytes) {
    facts.emplace_back("sent in a step", mebibytes(static_cast<double>(*r.sent_bytes)));
    facts.emplace_back("predicted to be sent", mebibytes(static_cast<double>(r.predicted.sent_bytes)));
  }
  return facts;
}

std::string summary(const RunResult& r) {
  std::string text;
  if (r.train_loss) text += fmt::format("training loss {:.4f}, ", *r.train_loss);
  if (r.val_loss) text += validation(r) + ", ";
  if (r.num_skipped > 0) text += skipped(r) + ", ";
  text += str(r.tokens, " tokens in ", cli::duration_text(r.time_s));
  if (r.tokens_per_s) text += ", " + cli::rate_text(*r.tokens_per_s);
  if (r.peak_bytes)
    text += ", peak " + mebibytes(*r.peak_bytes) + " (predicted " +
            mebibytes(static_cast<double>(r.predicted.peak_bytes)) + ")";
  if (r.step_s && r.predicted.step_s > 0)
    text += ", step " + milliseconds(*r.step_s) + " (predicted " + milliseconds(r.predicted.step_s) + ")";
  if (r.sent_bytes)
    text += ", sent " + mebibytes(static_cast<double>(*r.sent_bytes)) + " a step (predicted " +
            mebibytes(static_cast<double>(r.predicted.sent_bytes)) + ")";
  return text + ", " + r.report;
}

std::string result_text(const RunResult& r, bool is_json) {
  if (is_json) {
    nlohmann::ordered_json out{{"run", r.run}, {"step", r.steps}};
    auto add = [&](const char* key, const auto& value) {
      if (value) out[key] = *value;
    };
    add("train_loss", r.train_loss);
    out["report"] = r.report;
    add("val_loss", r.val_loss);
    add("val_loss_se", r.val_loss_se);
    add("val_ppl", r.val_ppl);
    add("val_bpb", r.val_bpb);
    add("sample", r.sample);
    out["skipped"] = r.num_skipped;
    out["time_s"] = r.time_s;
    add("tokens_per_second", r.tokens_per_s);
    add("peak_bytes", r.peak_bytes);
    out["predicted_peak_bytes"] = r.predicted.peak_bytes;
    add("step_s", r.step_s);
    if (r.predicted.step_s > 0) out["predicted_step_s"] = r.predicted.step_s;
    add("sent_bytes_per_step", r.sent_bytes);
    if (r.sent_bytes) out["predicted_sent_bytes_per_step"] = r.predicted.sent_bytes;
    return cli::json_text(out);
  }
  std::string text;
  if (r.val_loss) text += validation(r) + "\n";
  else if (r.train_loss) text += fmt::format("training loss {:.4f} nats per token\n", *r.train_loss);
  if (r.sample) text += "sample\n" + *r.sample + "\n";
  return text + "report " + r.report + "\n";
}

}  // namespace weft::train
