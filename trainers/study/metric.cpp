#include "trainers/study/metric.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <string_view>
#include <vector>

#include "trainers/config/config_error.h"
#include "trainers/study/cells.h"
#include "weft/core/pattern.h"

namespace weft::study {

namespace {

using config::ConfigError;

// What Recorder writes.
std::vector<std::string> recorded_keys() {
  return {"train/loss",
          "train/bpb",
          "train/grad_norm",
          "train/skipped",
          "val/loss",
          "val/loss_se",
          "val/ppl",
          "val/bpb",
          "val/targets",
          "speed/mfu",
          "speed/tokens_per_second",
          "memory/peak_gib"};
}

constexpr std::string_view kOfLength = "val/loss@", kFirstTokenMass = "first_token_mass";

}  // namespace

std::optional<int64_t> length_of(const std::string& metric) {
  if (!metric.starts_with(kOfLength)) return {};
  int64_t length = 0;
  const char* end = metric.data() + metric.size();
  const auto [at, error] = std::from_chars(metric.data() + kOfLength.size(), end, length);
  return error == std::errc() && at == end && length >= 1 && length <= kMostLength ? std::optional(length)
                                                                                   : std::nullopt;
}

bool is_diagnostic(const std::string& metric) {
  // What layers report of themselves, and what analyses find.
  static constexpr std::string_view kBegins[] = {"model.", "pruned_loss/", "rollout/", "flow/", "secondary_sink"};
  return metric == kFirstTokenMass ||
         std::ranges::any_of(kBegins, [&](std::string_view name) { return metric.starts_with(name); });
}

void check_key(const std::string& who, const std::string& metric) {
  const bool is_pattern = metric.find('*') != std::string::npos;
  if (is_pattern || is_diagnostic(metric) || metric.starts_with("train/lr/") || metric.starts_with("task/") ||
      length_of(metric))
    return;
  std::vector<std::string> keys = recorded_keys();
  for (const std::string& key : keys)
    if (metric == key) return;
  if (metric.starts_with(kOfLength))
    throw ConfigError(str(who, " ", metric, ": is of no length of rows."),
                      str("Write val/loss@LENGTH with 1 to ", kMostLength,
                          " tokens. It is asked of finished runs, as by eval { length: LENGTH }."));
  keys.emplace_back(kFirstTokenMass);
  const std::string near = config::nearest(metric, keys);
  throw ConfigError(
      str(who, " ", metric, ": no such metric.", near.empty() ? "" : " Did you mean '" + near + "'?"),
      str("Use one of: ", config::join(keys, ", "),
          ", train/lr/GROUP, a diagnostic by its path (model.layers.0.mixer.entropy/0), or val/loss@LENGTH, "
          "which finished runs are asked for as by eval { length: LENGTH }."));
}

Direction direction_of(const std::string& metric) {
  const std::string_view key = std::string_view(metric).substr(0, metric.find('@'));  // of one length
  if (key.starts_with("task/") && (key.ends_with("/accuracy") || key.find("/accuracy/") != std::string_view::npos))
    return Direction::higher;
  if (key == "speed/tokens_per_second" || key == "speed/mfu") return Direction::higher;
  if (key == "memory/peak_gib") return Direction::lower;
  for (std::string_view data : std::array{"train/", "val/"})
    for (std::string_view loss : std::array{"loss", "ppl", "bpb"})
      if (key.starts_with(data) && key.substr(data.size()) == loss) return Direction::lower;
  return Direction::neither;
}

std::optional<double> metric_of(const CellResult& result, const std::string& metric) {
  if (metric.find('*') == std::string::npos) {
    const auto found = result.metrics.find(metric);
    return found == result.metrics.end() ? std::nullopt : std::optional(found->second);
  }
  double sum = 0;
  int64_t count = 0;
  for (const auto& [key, value] : result.metrics)
    if (matches_pattern(metric, key)) sum += value, ++count;
  return count == 0 ? std::nullopt : std::optional(sum / static_cast<double>(count));
}

}  // namespace weft::study
