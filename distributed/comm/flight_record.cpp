#include "distributed/comm/flight_record.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "weft/core/error.h"

namespace weft::dist {

namespace {

// A line: state, seconds, time of its begin in seconds since 1970, bytes, communicator, operation.
constexpr const char* kColumns = "  state     seconds             began          bytes group        operation";
constexpr int kStateWidth = 7;

// One line of `width` characters, the rest blank.
void set_line(char* memory, const char* text, size_t width) {
  const size_t length = std::min(std::strlen(text), width - 1);
  std::memcpy(memory, text, length);
  std::memset(memory + length, ' ', width - 1 - length);
  memory[width - 1] = '\n';
}

}  // namespace

std::string host_name() {
  char name[256] = {};
  return ::gethostname(name, sizeof name - 1) == 0 ? name : "localhost";
}

FlightRecord::FlightRecord(const std::string& folder, int rank, int num_ranks)
    : bytes_((1 + kRings * kLines) * kWidth), lines_(kRings * kLines), next_(kRings) {
  const std::string path = str(folder, "/flight-", rank, ".txt");
  const int file = ::open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  void* memory = MAP_FAILED;
  if (file >= 0 && ::ftruncate(file, static_cast<off_t>(bytes_)) == 0)
    memory = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  const int problem = errno;
  if (file >= 0) ::close(file);
  WEFT_CHECK(memory != MAP_FAILED, str("flight record: cannot make ", path, ": ", std::strerror(problem)),
             "name a folder that exists and can be written");
  memory_ = static_cast<char*>(memory);
  for (size_t line = 0; line <= lines_.size(); ++line) set_line(memory_ + line * kWidth, "", kWidth);
  head_ = str(kColumns, "; rank ", rank, " of ", num_ranks, " on ", host_name(), ", process ", ::getpid(), "; ", kSent);
  write_head();
}

// The number alone: the line is whole at any time.
void FlightRecord::write_head() {
  const std::string number = std::to_string(sent_);
  if (sent_ == 0) return set_line(memory_, (head_ + number).c_str(), kWidth);
  if (head_.size() + number.size() < kWidth) std::memcpy(memory_ + head_.size(), number.data(), number.size());
}

void FlightRecord::note_sent(int64_t bytes) {
  std::lock_guard lock(mutex_);
  sent_ += bytes;
  write_head();
}

FlightRecord::~FlightRecord() { ::munmap(memory_, bytes_); }

int FlightRecord::add_ring() {
  std::lock_guard lock(mutex_);
  return num_rings_++ % kRings;
}

int FlightRecord::begin(int ring, std::string_view group, int64_t bytes, std::string_view text) {
  std::lock_guard lock(mutex_);
  const int line = ring * kLines + next_[static_cast<size_t>(ring)]++ % kLines;
  lines_[static_cast<size_t>(line)] = {Clock::now(), true};
  const auto since_1970 = std::chrono::system_clock::now().time_since_epoch();
  char content[kWidth];
  std::snprintf(content, sizeof content, "%*s %11.3f %17.3f %13lld %-12.*s %.*s", kStateWidth, "waiting", 0.0,
                std::chrono::duration<double>(since_1970).count(), static_cast<long long>(bytes),
                static_cast<int>(std::min<size_t>(group.size(), 12)), group.data(), static_cast<int>(text.size()),
                text.data());
  set_line(memory_of(line), content, kWidth);
  return line;
}

void FlightRecord::write_state(int line, std::string_view state) {
  const double seconds = std::chrono::duration<double>(Clock::now() - lines_[static_cast<size_t>(line)].began).count();
  char content[32];
  const int length = std::snprintf(content, sizeof content, "%*.*s %11.3f", kStateWidth, static_cast<int>(state.size()),
                                   state.data(), seconds);
  std::memcpy(memory_of(line), content, static_cast<size_t>(length));
}

void FlightRecord::end(int line, std::string_view state) {
  std::lock_guard lock(mutex_);
  lines_[static_cast<size_t>(line)].is_waiting = false;
  write_state(line, state);
}

void FlightRecord::update_times() {
  std::lock_guard lock(mutex_);
  for (size_t line = 0; line < lines_.size(); ++line)
    if (lines_[line].is_waiting) write_state(static_cast<int>(line), "waiting");
}

}  // namespace weft::dist
