// Device times are events around each span: the GPU writes them as it gets there, and nobody waits before finish().
#include "weft/core/profile.h"

#include <algorithm>
#include <chrono>
#include <map>
#include <memory>

#include "src/core/scope_watch.h"
#include "weft/core/error.h"
#include "weft/core/stream.h"

namespace weft {

class Profile::Recording final : public ScopeWatch {
 public:
  explicit Recording(Device device) : device_(device), base_(device, true) {
    WEFT_CHECK(!thread_watch(), "profile: this thread takes one already", "finish() it first");
    synchronize(device);
    base_.record();
    started_ = Clock::now();
    set_thread_watch(this);
  }
  ~Recording() override { stop(); }

  void begin(const std::string& path) override {
    open_.push_back(spans_.size());
    spans_.push_back({.path = path, .depth = static_cast<int>(open_.size()) - 1, .begin_us = now_us()});
    if (!device_.is_cuda()) return;
    events_.push_back({std::make_unique<Event>(device_, true), std::make_unique<Event>(device_, true)});
    events_.back().begin->record();
  }
  void end() override {
    if (open_.empty()) return;  // it began before the profile
    const size_t i = open_.back();
    open_.pop_back();
    if (device_.is_cuda()) events_[i].end->record();
    spans_[i].duration_us = now_us() - spans_[i].begin_us;
  }

  std::vector<ProfileSpan> finish() {
    while (!open_.empty()) end();
    stop();
    synchronize(device_);
    for (size_t i = 0; i < events_.size(); ++i) {
      spans_[i].device_begin_us = 1e3 * events_[i].begin->elapsed_ms(base_);
      spans_[i].device_duration_us = 1e3 * events_[i].end->elapsed_ms(*events_[i].begin);
    }
    events_.clear();
    return std::move(spans_);
  }

 private:
  using Clock = std::chrono::steady_clock;
  struct Events {
    std::unique_ptr<Event> begin, end;
  };

  double now_us() const { return std::chrono::duration<double, std::micro>(Clock::now() - started_).count(); }
  void stop() {
    if (thread_watch() == this) set_thread_watch(nullptr);
  }

  Device device_;
  Event base_;
  Clock::time_point started_;
  std::vector<ProfileSpan> spans_;
  std::vector<Events> events_;  // of the spans, on a GPU
  std::vector<size_t> open_;
};

Profile::Profile(Device device) : recording_(std::make_unique<Recording>(device)) {}
Profile::~Profile() = default;
std::vector<ProfileSpan> Profile::finish() { return recording_->finish(); }

namespace {

// The last name of a path; a number says which of several, and they count as one.
std::string kind_of(const std::string& path) {
  const size_t last = path.rfind('.') + 1;  // npos + 1 is 0
  const bool is_number = last < path.size() && path.find_first_not_of("0123456789", last) == std::string::npos;
  if (!is_number || last == 0) return path.substr(last);
  const size_t before = last >= 2 ? path.rfind('.', last - 2) + 1 : 0;
  return path.substr(before, last - before) + "*";
}

}  // namespace

std::vector<SelfTime> self_times(std::span<const ProfileSpan> spans) {
  const bool is_on_gpu =
      std::any_of(spans.begin(), spans.end(), [](const ProfileSpan& s) { return s.device_duration_us > 0; });
  auto duration = [&](size_t i) { return is_on_gpu ? spans[i].device_duration_us : spans[i].duration_us; };
  std::vector<double> own(spans.size());
  std::vector<std::string> names(spans.size());
  std::vector<size_t> open;  // the spans around the next one
  for (size_t i = 0; i < spans.size(); ++i) {
    open.resize(std::min(open.size(), static_cast<size_t>(std::max(spans[i].depth, 0))));
    own[i] += duration(i);
    if (!open.empty()) own[open.back()] -= duration(i);
    names[i] = open.empty() ? spans[i].path : spans[open[0]].path + " " + kind_of(spans[i].path);
    open.push_back(i);
  }
  std::map<std::string, SelfTime> sums;
  for (size_t i = 0; i < spans.size(); ++i) {
    SelfTime& sum = sums[names[i]];
    sum.name = names[i];
    sum.us += std::max(own[i], 0.0);  // a span that was still open has no duration
    ++sum.count;
  }
  std::vector<SelfTime> all;
  for (auto& [name, sum] : sums) all.push_back(std::move(sum));
  std::stable_sort(all.begin(), all.end(), [](const SelfTime& a, const SelfTime& b) { return a.us > b.us; });
  return all;
}

ProfileRange::ProfileRange(std::string_view name) : is_seen_(begin_span(std::string(name))) {}
ProfileRange::~ProfileRange() {
  if (is_seen_) end_span();
}

}  // namespace weft
