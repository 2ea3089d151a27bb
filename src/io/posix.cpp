#include "src/io/internal/posix.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "weft/core/error.h"

namespace weft::io::internal {

namespace {

std::string_view fix_for(int code) {
  switch (code) {
    case ENOSPC:
    case EDQUOT: return "free some disk space or choose another folder";
    case EFBIG: return "raise the limit on file sizes (ulimit -f) or choose another file system";
    case EACCES:
    case EPERM:
    case EROFS: return "make the folder writable for this user or choose another one";
    case ENOENT: return "check the path; folders on the way must exist";
    case ENOTDIR: return "check the path: a part of it is a file, not a folder";
    case EISDIR: return "check the path: it is a folder, not a file";
    case EMFILE:
    case ENFILE: return "raise the limit on open files (ulimit -n)";
    default: return "check the path and the disk";
  }
}

}  // namespace

void fail_errno(std::string_view operation, const std::string& path, int code, std::string_view detail) {
  fail(str(operation, " ", path, ": ", std::string_view(std::strerror(code)), detail), std::string(fix_for(code)));
}

int open_descriptor(const std::string& path, int flags) {
  int descriptor;
  do descriptor = ::open(path.c_str(), flags | O_CLOEXEC, 0666);
  while (descriptor < 0 && errno == EINTR);
  if (descriptor < 0) fail_errno("open", path, errno);
  return descriptor;
}

bool is_still_at(int descriptor, const std::string& path) {
  struct stat open {
  }, named{};
  return ::fstat(descriptor, &open) == 0 && ::stat(path.c_str(), &named) == 0 && open.st_dev == named.st_dev &&
         open.st_ino == named.st_ino;
}

void close_quietly(int descriptor) {
  if (descriptor >= 0) ::close(descriptor);
}

int write_all(int descriptor, std::string_view bytes, uint64_t& written) {
  constexpr size_t kLargestWrite = size_t{1} << 30;  // the system takes at most 2 GiB at a time
  while (!bytes.empty()) {
    ssize_t n = ::write(descriptor, bytes.data(), std::min(bytes.size(), kLargestWrite));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno;
    if (n == 0) return EIO;
    written += static_cast<uint64_t>(n);
    bytes.remove_prefix(static_cast<size_t>(n));
  }
  return 0;
}

std::string folder_of(const std::string& path) {
  size_t end = path.find_last_not_of('/');
  size_t slash = end == std::string::npos ? std::string::npos : path.rfind('/', end);
  if (slash == std::string::npos) return path.empty() || path[0] != '/' ? "." : "/";
  return slash == 0 ? "/" : path.substr(0, slash);
}

}  // namespace weft::io::internal
