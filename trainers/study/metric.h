// Metrics of runs, by keys such as "val/loss" or "task/mqar/accuracy@64", or by patterns such as "*.sink_rate/*".
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace weft::study {

struct CellResult;

// Which of two values is better. Of most keys neither is: more weight on the first token is no merit, and no fault.
enum class Direction { lower, higher, neither };
Direction direction_of(const std::string& metric);

// ConfigError if it is a key that no run has, as far as names say. `who` is said before the key.
void check_key(const std::string& who, const std::string& metric);
// Whether it is what layers report of themselves or what analyses find, which runs take only if they are asked to.
bool is_diagnostic(const std::string& metric);
// 512 of "val/loss@512", which `weft eval` answers; nothing of other keys.
std::optional<int64_t> length_of(const std::string& metric);

// A metric of a run; of a pattern with *, the mean of all metrics that match it.
std::optional<double> metric_of(const CellResult& result, const std::string& metric);

}  // namespace weft::study
