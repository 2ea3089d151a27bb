// TensorBoard event files: scalars, texts, histograms.
//   io::EventWriter events("run");
//   events.scalar("train/loss", 3.2, {.step = 10, .wall_s = now});
//   events.flush();                                           // after each log interval
// Records are framed with masked CRC32C. A resumed run opens a new file. Not for: images.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace weft::io {

struct EventTime {
  int64_t step = 0;
  double wall_s = 0;  // Unix time
};

// Bucket i counts the values between limits i-1 and i; the last limit is the largest double.
struct Histogram {
  double min = 0, max = 0, num = 0, sum = 0, sum_squares = 0;
  std::vector<double> bucket_limits, buckets;
};

// Buckets of equal width between the smallest and the largest value. Values that are not finite are left out.
Histogram make_histogram(std::span<const float> values, int num_buckets = 30);

// TensorBoard's view HParams of a study: the names of what is varied, and the tags of what is compared.
struct StudyHParams {
  std::string name;
  std::vector<std::string> hparams, metrics;
};

class EventWriter {
 public:
  // Creates <folder>/events.out.tfevents.<seconds>.<host>.<pid>.<n>; n counts up from 0 to a name that is free.
  EventWriter(const std::string& folder, double wall_s);
  ~EventWriter();  // flushes, and ignores a failure: call flush() first to see it
  EventWriter(const EventWriter&) = delete;
  EventWriter& operator=(const EventWriter&) = delete;

  void scalar(std::string_view tag, double value, EventTime time);
  void text(std::string_view tag, std::string_view value, EventTime time);
  void histogram(std::string_view tag, const Histogram& value, EventTime time);
  // For HParams: study() in the study's folder; the other two in the folder of each run, whose `hparams` are pairs of name and value. Runs
  // of one `group` differ in the seed alone.
  void study(const StudyHParams& study, EventTime time);
  void run_of_study(std::span<const std::pair<std::string, std::string>> hparams, std::string_view group,
                    EventTime time);
  void run_has_ended(bool has_result, EventTime time);
  // Says that a session begins at this step. Readers then ignore what earlier records and files have for this step and later ones.
  void start_session(EventTime time);
  void flush();
  void sync();  // flushes, to the disk
  const std::string& path() const { return path_; }

 private:
  void add_summary(std::string_view value, EventTime time);
  void add_hparams(std::string_view tag, int field, std::string_view message, EventTime time);
  void add_record(std::string_view event);

  std::string path_, buffer_;
  int descriptor_ = -1;
  std::set<std::string, std::less<>> text_tags_;  // whose metadata is written
};

struct EventValue {
  std::string tag;
  std::optional<float> scalar;
  std::vector<std::string> texts;
  std::optional<Histogram> histogram;
};

struct Event {
  EventTime time;
  std::string file_version;  // of the first record
  std::vector<EventValue> values;
  bool starts_session = false;  // see EventWriter::start_session()
  uint64_t offset = 0;          // of its record in the file
};

struct EventFile {
  std::vector<Event> events;
  bool has_torn_end = false;  // the last record is incomplete, because the process was killed
  uint64_t whole_bytes = 0;   // up to there
};

// Error with path and byte offset if a checksum or a message is wrong. Fields that Weft does not write are passed over.
EventFile read_events(const std::string& path);

// Removes what the event files in `folder` have after `step`. Each file is cut before its first record that is incomplete, or of a later
// step, or of `step` itself with a value for which `keeps` is false. Returns the number of records removed. Files that cannot be read stay
// as they are, and `messages` names them.
int64_t rewind_events(const std::string& folder, int64_t step, const std::function<bool(const EventValue&)>& keeps,
                      std::vector<std::string>& messages);

}  // namespace weft::io
