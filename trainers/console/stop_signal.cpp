#include "trainers/console/stop_signal.h"

#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <mutex>

#include "trainers/console/live_lines.h"

namespace weft::train {

namespace {

constexpr std::array kSignals{SIGTERM, SIGINT, SIGHUP, SIGXCPU};
constexpr double kSameSignal_s = 0.3;

std::atomic<int> raised{0};
static_assert(std::atomic<int>::is_always_lock_free, "a signal handler may write it");
std::atomic<double> raised_at_s{0};
std::atomic<const char*> waited_for{""};
std::atomic<bool> is_answering{false};
std::mutex mutex;  // of what follows
int num_standing = 0;
std::array<struct sigaction, kSignals.size()> old_actions;

const char* name_of(int signal) {
  switch (signal) {
    case SIGTERM: return "SIGTERM";
    case SIGINT: return "SIGINT";
    case SIGHUP: return "SIGHUP";
    case SIGXCPU: return "SIGXCPU";
    default: return "";
  }
}

double now_s() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// A line above the bar, with nothing but what a signal handler may call.
class Line {
 public:
  void add(const char* text) {
    size_t length = std::min(std::strlen(text), sizeof buffer_ - size_);
    std::memcpy(buffer_ + size_, text, length);
    size_ += length;
  }
  void write() { (void)!::write(STDERR_FILENO, buffer_, size_); }

 private:
  char buffer_[600];
  size_t size_ = 0;
};

void answer(const char* name, const char* text, const char* rest) {
  if (!is_answering) return;
  Line line;
  for (int i = cli::LiveLines::interrupt(); i > 0; --i) line.add(i > 1 ? "\r\x1b[2K\x1b[1A" : "\r\x1b[2K");
  for (const char* part : {name, ": ", text, rest, "\n"}) line.add(part);
  line.write();
}

void on_signal(int signal) {
  const int error = errno;
  if (raised == 0) {
    raised = signal;
    raised_at_s = now_s();
    answer(name_of(signal), waited_for, "; a second signal ends the run at once");
  } else if (now_s() - raised_at_s > kSameSignal_s) {
    answer(name_of(signal), "ended at once, to be continued from the last checkpoint", "");
    std::signal(signal, SIG_DFL);
    std::raise(signal);
  }
  errno = error;
}

}  // namespace

StopSignal::StopSignal(bool answers) {
  const std::lock_guard lock(mutex);
  if (num_standing++ > 0) {
    if (answers) is_answering = true;
    return;
  }
  raised = 0;
  is_answering = answers;
  waits_for("finishing the start");
  struct sigaction action {};
  action.sa_handler = on_signal;
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART;
  for (size_t i = 0; i < kSignals.size(); ++i) {
    sigaction(kSignals[i], nullptr, &old_actions[i]);
    bool stays_ignored = kSignals[i] == SIGHUP && old_actions[i].sa_handler == SIG_IGN;
    if (!stays_ignored) sigaction(kSignals[i], &action, nullptr);
  }
}

StopSignal::~StopSignal() {
  const std::lock_guard lock(mutex);
  if (--num_standing > 0) return;
  for (size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &old_actions[i], nullptr);
}

bool StopSignal::was_raised() { return raised != 0; }
const char* StopSignal::name() { return name_of(raised); }
void StopSignal::waits_for(const char* text) { waited_for = text; }

}  // namespace weft::train
