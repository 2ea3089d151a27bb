// The last operations of a rank in a file, for when a run ends without one: which rank was behind, and where it waited. The file is memory
// that the system writes (mmap), so that it is whole even when the process is killed in the middle of an operation.
#pragma once

#include <chrono>
#include <cstdint>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

namespace weft::dist {

class FlightRecord {
 public:
  static constexpr int kRings = 16;  // of communicators; more share them
  static constexpr int kLines = 24;  // of each ring
  static constexpr size_t kWidth = 240;
  static constexpr std::string_view kSent = "bytes sent ";  // in the first line, before their number

  FlightRecord(const std::string& folder, int rank, int num_ranks);  // folder/flight-RANK.txt, made anew
  ~FlightRecord();
  FlightRecord(const FlightRecord&) = delete;
  FlightRecord& operator=(const FlightRecord&) = delete;

  int add_ring();
  // A line of the ring, in the state "waiting". `text` says what, which number and where.
  int begin(int ring, std::string_view group, int64_t bytes, std::string_view text);
  void end(int line, std::string_view state);  // "done", "failed"
  void update_times();                         // of the lines that wait
  void note_sent(int64_t bytes);               // in all, in the first line

 private:
  using Clock = std::chrono::steady_clock;
  struct Line {
    Clock::time_point began;
    bool is_waiting = false;
  };
  char* memory_of(int line) const { return memory_ + (1 + static_cast<size_t>(line)) * kWidth; }
  void write_state(int line, std::string_view state);
  void write_head();

  std::mutex mutex_;
  std::string head_;
  int64_t sent_ = 0;
  char* memory_ = nullptr;
  size_t bytes_ = 0;
  int num_rings_ = 0;
  std::vector<Line> lines_;
  std::vector<int> next_;  // of each ring
};

// An operation in the record from its begin to its end; without a record it does nothing.
class FlightEntry {
 public:
  FlightEntry() = default;
  FlightEntry(FlightRecord* record, int ring, std::string_view group, int64_t bytes, std::string_view text)
      : record_(record), line_(record->begin(ring, group, bytes, text)) {}
  FlightEntry(const FlightEntry&) = delete;
  FlightEntry& operator=(const FlightEntry&) = delete;
  ~FlightEntry() {
    if (record_) record_->end(line_, "failed");
  }
  void done() {
    if (record_) record_->end(line_, "done");
    record_ = nullptr;
  }

 private:
  FlightRecord* record_ = nullptr;
  int line_ = 0;
};

std::string host_name();

}  // namespace weft::dist
