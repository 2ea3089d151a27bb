#include "tests/io/faults.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace weft::test {

namespace {

Fault fault = Fault::none;
int fault_at = 0, num_calls = 0;

// True if this call is to fail.
bool is_due() { return num_calls++ == fault_at; }

void die() { ::syscall(SYS_kill, ::getpid(), SIGKILL); }

long counted(long number, long a, long b = 0, long c = 0, long d = 0, long e = 0) {
  if (is_due() && fault == Fault::kill) die();
  return ::syscall(number, a, b, c, d, e);
}

}  // namespace

void set_fault(Fault new_fault, int at) {
  fault = new_fault;
  fault_at = at;
  num_calls = 0;
}

int num_write_calls() { return num_calls; }

static ssize_t faulty_write(int descriptor, const void* data, size_t size) {
  bool now = is_due();
  if (fault == Fault::kill && now) {
    ::syscall(SYS_write, descriptor, data, size / 2);
    die();
  }
  if (fault == Fault::disk_full && num_calls > fault_at) {
    if (now && size > 1) return ::syscall(SYS_write, descriptor, data, size / 2);
    errno = ENOSPC;
    return -1;
  }
  if (fault == Fault::interrupt) {
    if (now) {
      errno = EINTR;
      return -1;
    }
    size = size > 7 ? 7 + size / 3 : size;
  }
  return ::syscall(SYS_write, descriptor, data, size);
}

}  // namespace weft::test

extern "C" {

ssize_t write(int descriptor, const void* data, size_t size) {
  // Only files: the test's own messages go through.
  struct stat info {};
  if (::fstat(descriptor, &info) != 0 || !S_ISREG(info.st_mode)) return ::syscall(SYS_write, descriptor, data, size);
  return weft::test::faulty_write(descriptor, data, size);
}

int fsync(int descriptor) { return static_cast<int>(weft::test::counted(SYS_fsync, descriptor)); }

int rename(const char* from, const char* to) noexcept {
  return static_cast<int>(weft::test::counted(SYS_rename, reinterpret_cast<long>(from), reinterpret_cast<long>(to)));
}

int renameat2(int from_folder, const char* from, int to_folder, const char* to, unsigned flags) noexcept {
  return static_cast<int>(weft::test::counted(SYS_renameat2, from_folder, reinterpret_cast<long>(from), to_folder,
                                              reinterpret_cast<long>(to), static_cast<long>(flags)));
}

int mkdir(const char* path, mode_t mode) noexcept {
  return static_cast<int>(weft::test::counted(SYS_mkdir, reinterpret_cast<long>(path), static_cast<long>(mode)));
}

int unlink(const char* path) noexcept {
  return static_cast<int>(weft::test::counted(SYS_unlink, reinterpret_cast<long>(path)));
}

int rmdir(const char* path) noexcept {
  return static_cast<int>(weft::test::counted(SYS_rmdir, reinterpret_cast<long>(path)));
}

}  // extern "C"
