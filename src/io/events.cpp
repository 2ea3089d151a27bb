// Field numbers: Event wall_time=1 step=2 file_version=3 summary=5; Summary value=1; Value tag=1 simple_value=2 histo=5
// tensor=8 metadata=9; Event session_log=7 {status=1: 1 is START}; HistogramProto min=1 max=2 num=3 sum=4 sum_squares=5 bucket_limit=6 bucket=7; SummaryMetadata
// plugin_data=1 {plugin_name=1 content=2} data_class=4; TensorProto dtype=1 tensor_shape=2 {dim=2 {size=1}} string_val=8.
// HParamsPluginData version=1 experiment=2 session_start_info=3 session_end_info=4; Experiment name=6 hparam_infos=4 {name=1 type=4}
// metric_infos=5 {name=1 {tag=2}}; SessionStartInfo hparams=1, a map of Value {string_value=3}, group_name=4 start_time_secs=5; SessionEndInfo
// status=1 end_time_secs=2.
#include "weft/io/events.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <limits>
#include <utility>

#include "src/io/internal/posix.h"
#include "src/io/internal/wire.h"
#include "weft/core/error.h"
#include "weft/io/files.h"

namespace weft::io {

using internal::WireWriter;

namespace {

constexpr uint64_t kTensorOfStrings = 7, kDataClassTensor = 2;

std::string packed(const std::vector<double>& values) {
  return std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(double));
}

// Opens a name that is not taken: a process that resumes within the same second must not append to its predecessor's
// file.
int create_event_file(const std::string& folder, double wall_s, std::string& path) {
  char host[256] = "localhost";
  if (::gethostname(host, sizeof host - 1) != 0) std::copy_n("localhost", 10, host);
  auto seconds = static_cast<int64_t>(wall_s);
  for (int n = 0;; ++n) {
    path = str(folder, "/events.out.tfevents.", seconds, ".", std::string_view(host), ".", ::getpid(), ".", n);
    int descriptor = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0666);
    if (descriptor >= 0) return descriptor;
    if (errno != EEXIST && errno != EINTR) internal::fail_errno("open", path, errno);
  }
}

}  // namespace

Histogram make_histogram(std::span<const float> values, int num_buckets) {
  WEFT_CHECK(num_buckets >= 1, str("make_histogram: num_buckets is ", num_buckets), "use 1 or more");
  Histogram h;
  double low = std::numeric_limits<double>::infinity(), high = -low;
  for (float value : values) {
    if (!std::isfinite(value)) continue;
    double x = value;
    low = std::min(low, x);
    high = std::max(high, x);
    h.num += 1;
    h.sum += x;
    h.sum_squares += x * x;
  }
  if (h.num == 0) return h;
  h.min = low;
  h.max = high;
  double width = (high - low) / num_buckets;
  for (int i = 1; i < num_buckets; ++i) h.bucket_limits.push_back(low + width * i);
  h.bucket_limits.push_back(std::numeric_limits<double>::max());
  h.buckets.assign(static_cast<size_t>(num_buckets), 0);
  for (float value : values) {
    if (!std::isfinite(value)) continue;
    auto at = std::upper_bound(h.bucket_limits.begin(), h.bucket_limits.end() - 1, static_cast<double>(value));
    h.buckets[static_cast<size_t>(at - h.bucket_limits.begin())] += 1;
  }
  return h;
}

EventWriter::EventWriter(const std::string& folder, double wall_s) {
  descriptor_ = create_event_file(folder, wall_s, path_);
  add_record(WireWriter().real64(1, wall_s).bytes(3, "brain.Event:2").text());
}

EventWriter::~EventWriter() {
  uint64_t written = 0;
  internal::write_all(descriptor_, buffer_, written);
  internal::close_quietly(descriptor_);
}

void EventWriter::scalar(std::string_view tag, double value, EventTime time) {
  add_summary(WireWriter().bytes(1, tag).real32(2, static_cast<float>(value)).text(), time);
}

void EventWriter::text(std::string_view tag, std::string_view value, EventTime time) {
  WireWriter out;
  std::string shape = WireWriter().bytes(2, WireWriter().varint(1, 1).text()).text();
  out.bytes(1, tag).bytes(8, WireWriter().varint(1, kTensorOfStrings).bytes(2, shape).bytes(8, value).text());
  if (text_tags_.emplace(tag).second) {
    std::string plugin = WireWriter().bytes(1, "text").text();
    out.bytes(9, WireWriter().bytes(1, plugin).varint(4, kDataClassTensor).text());
  }
  add_summary(out.text(), time);
}

void EventWriter::histogram(std::string_view tag, const Histogram& h, EventTime time) {
  WireWriter histogram;
  histogram.real64(1, h.min).real64(2, h.max).real64(3, h.num).real64(4, h.sum).real64(5, h.sum_squares);
  histogram.bytes(6, packed(h.bucket_limits)).bytes(7, packed(h.buckets));
  add_summary(WireWriter().bytes(1, tag).bytes(5, histogram.text()).text(), time);
}

void EventWriter::add_hparams(std::string_view tag, int field, std::string_view message, EventTime time) {
  constexpr uint64_t kTensorOfFloats = 1;
  const std::string empty_shape = WireWriter().bytes(2, WireWriter().varint(1, 0).text()).text();
  const std::string plugin =
      WireWriter().bytes(1, "hparams").bytes(2, WireWriter().varint(1, 0).bytes(field, message).text()).text();
  WireWriter value;
  value.bytes(1, tag).bytes(8, WireWriter().varint(1, kTensorOfFloats).bytes(2, empty_shape).text());
  add_summary(value.bytes(9, WireWriter().bytes(1, plugin).varint(4, kDataClassTensor).text()).text(), time);
}

void EventWriter::study(const StudyHParams& study, EventTime time) {
  constexpr uint64_t kString = 1;
  WireWriter experiment;
  for (const std::string& name : study.hparams)
    experiment.bytes(4, WireWriter().bytes(1, name).varint(4, kString).text());
  for (const std::string& tag : study.metrics)
    experiment.bytes(5, WireWriter().bytes(1, WireWriter().bytes(2, tag).text()).text());
  add_hparams("_hparams_/experiment", 2, experiment.bytes(6, study.name).text(), time);
}

void EventWriter::run_of_study(std::span<const std::pair<std::string, std::string>> hparams, std::string_view group,
                               EventTime time) {
  WireWriter start;
  for (const auto& [name, value] : hparams)
    start.bytes(1, WireWriter().bytes(1, name).bytes(2, WireWriter().bytes(3, value).text()).text());
  add_hparams("_hparams_/session_start_info", 3, start.bytes(4, group).real64(5, time.wall_s).text(), time);
}

void EventWriter::run_has_ended(bool has_result, EventTime time) {
  const uint64_t status = has_result ? 1 : 2;
  add_hparams("_hparams_/session_end_info", 4, WireWriter().varint(1, status).real64(2, time.wall_s).text(), time);
}

void EventWriter::start_session(EventTime time) {
  constexpr uint64_t kStart = 1;
  WireWriter event;
  event.real64(1, time.wall_s).varint(2, static_cast<uint64_t>(time.step));
  add_record(event.bytes(7, WireWriter().varint(1, kStart).text()).text());
}

void EventWriter::add_summary(std::string_view value, EventTime time) {
  WireWriter event;
  event.real64(1, time.wall_s)
      .varint(2, static_cast<uint64_t>(time.step))
      .bytes(5, WireWriter().bytes(1, value).text());
  add_record(event.text());
}

void EventWriter::add_record(std::string_view event) {
  auto append = [&](const auto& number) { buffer_.append(reinterpret_cast<const char*>(&number), sizeof number); };
  uint64_t length = event.size();
  append(length);
  append(masked_crc32c({reinterpret_cast<const char*>(&length), sizeof length}));
  buffer_ += event;
  append(masked_crc32c(event));
}

void EventWriter::flush() {
  uint64_t written = 0;
  int code = internal::write_all(descriptor_, buffer_, written);
  buffer_.erase(0, written);  // the next flush goes on where this one stopped
  if (code != 0) internal::fail_errno("append to", path_, code);
}

void EventWriter::sync() {
  flush();
  if (::fsync(descriptor_) != 0) internal::fail_errno("sync", path_, errno);
}

}  // namespace weft::io
