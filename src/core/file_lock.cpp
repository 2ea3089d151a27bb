#include "src/core/file_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <thread>

namespace weft {

namespace {

// Whether `path` still names the file that is open: the writer before may have renamed it while we waited for its lock.
bool is_at(const std::string& path, int descriptor) {
  struct stat here {
  }, there{};
  return ::fstat(descriptor, &here) == 0 && ::stat(path.c_str(), &there) == 0 && here.st_ino == there.st_ino &&
         here.st_dev == there.st_dev;
}

int close_with(int descriptor, int code) {
  ::close(descriptor);
  errno = code;
  return -1;
}

}  // namespace

int open_locked(const std::string& path, double patience_s) {
  using Clock = std::chrono::steady_clock;
  const auto end = Clock::now() + std::chrono::duration<double>(patience_s);
  for (;;) {
    int descriptor = ::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
    if (descriptor < 0 && errno == EINTR) continue;
    if (descriptor < 0) return -1;
    if (::flock(descriptor, LOCK_EX | LOCK_NB) == 0) {
      if (is_at(path, descriptor)) return descriptor;
      ::close(descriptor);
      continue;
    }
    int code = errno;
    if (code != EWOULDBLOCK && code != EINTR) return close_with(descriptor, code);
    if (Clock::now() >= end) return close_with(descriptor, EWOULDBLOCK);
    ::close(descriptor);
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

}  // namespace weft
