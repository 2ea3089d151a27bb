// Chrome and Perfetto traces of one rank: spans, counters, messages between ranks.
//   io::TraceWriter trace(rank);
//   trace.name_thread(0, "main");
//   trace.span({.name = "matmul", .category = "op", .begin_us = t, .duration_us = d, .thread = 0});
//   trace.write("run/trace/rank-0000.json");
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace weft::io {

using TraceNumbers = std::vector<std::pair<std::string, double>>;

struct TraceSpan {
  std::string name = {}, category = {};
  double begin_us = 0, duration_us = 0;  // on the clock that all ranks share
  int thread = 0;                        // or stream
  TraceNumbers numbers = {};             // shown with the span
};

// Collects events in memory; a trace covers a few steps.
class TraceWriter {
 public:
  explicit TraceWriter(int rank) : rank_(rank) {}

  void name_process(std::string_view name);
  void name_thread(int thread, std::string_view name);
  void span(const TraceSpan& span);
  void counter(std::string_view name, double at_us, const TraceNumbers& series);  // "memory", {{"activations", bytes}}
  // An arrow from one rank's span to another's: equal name and id on both sides.
  void message_sent(std::string_view name, uint64_t id, double at_us, int thread);
  void message_received(std::string_view name, uint64_t id, double at_us, int thread);

  std::string text() const;                   // the whole JSON document
  void write(const std::string& path) const;  // atomically

 private:
  void add(std::string event);
  void add_message(char phase, std::string_view name, uint64_t id, double at_us, int thread);

  int rank_;
  std::string events_;
};

}  // namespace weft::io
