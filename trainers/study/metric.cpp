#include "trainers/study/metric.h"

#include <array>
#include <string_view>

#include "trainers/study/cells.h"
#include "weft/core/pattern.h"

namespace weft::study {

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
