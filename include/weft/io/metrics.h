// metrics.jsonl: one JSON object per line, appended and flushed line by line.
//   io::MetricsWriter metrics("run/metrics.jsonl");
//   metrics.write({.step = 10, .tokens = n, .kind = "train", .values = {{"train/loss", 3.2}}});
//   for (const auto& row : io::apply_rewinds(io::read_metrics(path))) ...
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace weft::io {

struct MetricsRecord {
  int64_t step = 0;
  int64_t tokens = 0;
  double time_s = 0;      // training seconds, without evaluation, checkpoints and the first 10 steps
  double wall_s = 0;      // Unix time
  std::string kind = {};  // "train", "val", ...; "rewind" only has a step
  std::vector<std::pair<std::string, double>> values = {};  // keys as in TensorBoard, in the order written

  std::optional<double> value(std::string_view key) const;
};

// The line without its end: {"step":..,"tokens":..,"time":..,"wall":..,"kind":..,values...}. Numbers are the shortest
// texts that read back equal; numbers that are not finite become "nan", "inf", "-inf".
std::string to_json(const MetricsRecord& record);

class MetricsWriter {
 public:
  // Appends to `path`, or creates it. An incomplete last line of a killed process is removed. If the file is removed or replaced while the
  // writer has it open, the next write is an Error.
  explicit MetricsWriter(const std::string& path);
  ~MetricsWriter();
  MetricsWriter(const MetricsWriter&) = delete;
  MetricsWriter& operator=(const MetricsWriter&) = delete;

  void write(const MetricsRecord& record);
  // Call it on resume. Moves the lines of steps after `step` to the end of the file `aside` (empty: drops them), and writes a "rewind" line
  // in their place. Returns the number of lines. If there are none, it writes nothing.
  int64_t rewind(int64_t step, const std::string& aside = {});
  void sync();                                      // to the disk
  int64_t last_step() const { return last_step_; }  // the largest that counts; -1 without lines

 private:
  void append(std::string line);

  std::string path_;
  int descriptor_ = -1;
  int64_t last_step_ = -1;  // largest step that counts
};

// All lines, "rewind" ones included. Ignores unknown keys, values that are not numbers, and an incomplete last line. Error with path and line
// number if another line is damaged.
std::vector<MetricsRecord> read_metrics(const std::string& path);

// Leaves out the "rewind" records, and the records before each of them whose steps come after its step.
std::vector<MetricsRecord> apply_rewinds(const std::vector<MetricsRecord>& records);

}  // namespace weft::io
