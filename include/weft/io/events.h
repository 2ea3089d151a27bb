// TensorBoard event files: scalars, texts, histograms.
//   io::EventWriter events("run");
//   events.scalar("train/loss", 3.2, {.step = 10, .wall_s = now});
//   events.flush();                                           // after each log interval
// Records are framed with masked CRC32C. A resumed run opens a new file. Not for: images, HParams.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
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

// `num_buckets` of equal width between the smallest and the largest value. Values that are not finite are left out.
Histogram make_histogram(std::span<const float> values, int num_buckets = 30);

class EventWriter {
 public:
  // Creates <folder>/events.out.tfevents.<seconds>.<host>.<pid>.<n>; n counts up from 0 to a name that is free.
  EventWriter(const std::string& folder, double wall_s);
  ~EventWriter();  // flushes; a failure then is lost, so call flush() first where it matters
  EventWriter(const EventWriter&) = delete;
  EventWriter& operator=(const EventWriter&) = delete;

  void scalar(std::string_view tag, double value, EventTime time);
  void text(std::string_view tag, std::string_view value, EventTime time);
  void histogram(std::string_view tag, const Histogram& value, EventTime time);
  // A session that begins: for readers, nothing of this step and later ones counts that stands in earlier records and files.
  void start_session(EventTime time);
  void flush();
  void sync();  // flushes, to the disk
  const std::string& path() const { return path_; }

 private:
  void add_summary(std::string_view value, EventTime time);
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
  bool has_torn_end = false;  // the last record is cut off, as a killed process leaves it
  uint64_t whole_bytes = 0;   // up to there
};

// Error with path and byte offset if a checksum or a message is wrong. Fields that Weft does not write are passed over.
EventFile read_events(const std::string& path);

// Takes back what the event files in `folder` hold beyond `step`: each is cut before its first record that is torn, of a later
// step, or of `step` itself with a value that `keeps` refuses. Returns the number of records cut; `messages` names files that
// cannot be read, which stay as they are.
int64_t rewind_events(const std::string& folder, int64_t step, const std::function<bool(const EventValue&)>& keeps,
                      std::vector<std::string>& messages);

}  // namespace weft::io
