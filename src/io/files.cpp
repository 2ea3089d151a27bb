#include "weft/io/files.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "src/core/file_lock.h"
#include "src/io/internal/posix.h"
#include "weft/core/error.h"

namespace weft::io {

using internal::close_quietly;
using internal::fail_errno;
using internal::folder_of;
using internal::open_descriptor;

namespace {

// Several writers of one small file take turns; the last one's content stays.
constexpr double kPatience_s = 10;

struct Held {
  int descriptor = -1;
  ~Held() { close_quietly(descriptor); }
};

int open_aside(const std::string& path) {
  int descriptor = open_locked(path, kPatience_s);
  if (descriptor < 0 && errno == EWOULDBLOCK)
    fail(str("open ", path, ": another writer has held it for ", kPatience_s, " seconds"),
         "wait until the other process or thread has written it, or write to another name");
  if (descriptor < 0) fail_errno("open", path, errno);
  if (::ftruncate(descriptor, 0) == 0) return descriptor;  // what a killed writer left
  int code = errno;
  close_quietly(descriptor);
  fail_errno("truncate", path, code);
}

}  // namespace

FileWriter::FileWriter(std::string path, Placement placement)
    : path_(std::move(path)),
      written_path_(placement == Placement::aside ? path_ + ".partial" : path_),
      placement_(placement),
      descriptor_(placement == Placement::aside ? open_aside(written_path_)
                                                : open_descriptor(written_path_, O_WRONLY | O_CREAT | O_TRUNC)) {}

FileWriter::~FileWriter() {
  if (descriptor_ < 0) return;
  ::unlink(written_path_.c_str());  // before the lock ends: afterwards the name may be another writer's
  close_quietly(descriptor_);
}

void FileWriter::write(std::string_view bytes) {
  WEFT_ASSERT(descriptor_ >= 0);
  uint64_t written = 0;
  int code = internal::write_all(descriptor_, bytes, written);
  hash_.update(bytes.substr(0, written));
  size_ += written;
  if (code) fail_errno("write", path_, code, str(" (after ", size_, " bytes)"));
}

FileDigest FileWriter::commit() {
  if (::fsync(descriptor_) != 0) fail_errno("sync", path_, errno, str(" (after ", size_, " bytes)"));
  // Some file systems report a full disk only when it is closed. A copy keeps the lock until the name is given.
  const Held lock{::fcntl(descriptor_, F_DUPFD_CLOEXEC, 0)};
  if (lock.descriptor < 0) fail_errno("close", path_, errno);
  if (::close(std::exchange(descriptor_, -1)) != 0) {
    int code = errno;
    ::unlink(written_path_.c_str());
    fail_errno("close", path_, code, str(" (after ", size_, " bytes)"));
  }
  if (placement_ == Placement::aside) {
    if (::rename(written_path_.c_str(), path_.c_str()) != 0) {
      int code = errno;
      ::unlink(written_path_.c_str());
      fail_errno("rename to", path_, code);
    }
    sync_folder(folder_of(path_));
  }
  return {size_, hash_.digest()};
}

FileDigest write_file_atomically(const std::string& path, std::string_view bytes) {
  FileWriter writer(path);
  writer.write(bytes);
  return writer.commit();
}

void append_file(const std::string& path, std::string_view bytes) {
  int descriptor = open_descriptor(path, O_WRONLY | O_CREAT | O_APPEND);
  uint64_t written = 0;
  off_t end = ::lseek(descriptor, 0, SEEK_END);
  int code = internal::write_all(descriptor, bytes, written);
  if (code != 0 && end >= 0) (void)!::ftruncate(descriptor, end);
  if (code == 0 && ::fsync(descriptor) != 0) code = errno;
  close_quietly(descriptor);
  if (code != 0) fail_errno("append to", path, code);
}

void cut_file(const std::string& path, uint64_t size) {
  int descriptor = open_descriptor(path, O_WRONLY);
  int code = ::ftruncate(descriptor, static_cast<off_t>(size)) != 0 || ::fsync(descriptor) != 0 ? errno : 0;
  close_quietly(descriptor);
  if (code != 0) fail_errno("shorten", path, code);
}

namespace {

// Opens a regular file for reading and returns its size.
uint64_t open_regular(const std::string& path, int& descriptor) {
  descriptor = open_descriptor(path, O_RDONLY | O_NONBLOCK);  // a pipe would block here for ever
  struct stat info {};
  int code = ::fstat(descriptor, &info) != 0 ? errno
             : S_ISDIR(info.st_mode)         ? EISDIR
             : S_ISREG(info.st_mode)         ? 0
                                             : EINVAL;
  if (code == 0) return static_cast<uint64_t>(info.st_size);
  close_quietly(descriptor);
  fail_errno("read", path, code, code == EINVAL ? " (not a regular file)" : "");
}

}  // namespace

std::string read_file(const std::string& path, uint64_t max_bytes) {
  int descriptor = -1;
  uint64_t size = open_regular(path, descriptor);
  if (size > max_bytes) {
    close_quietly(descriptor);
    fail(str("read ", path, ": the file has ", size, " bytes, at most ", max_bytes, " are expected"), "check the path");
  }
  std::string bytes(size, '\0');
  size_t at = 0;
  while (at < bytes.size()) {
    ssize_t n = ::read(descriptor, bytes.data() + at, bytes.size() - at);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      int code = errno;
      close_quietly(descriptor);
      fail_errno("read", path, code, str(" (after ", at, " of ", size, " bytes)"));
    }
    if (n == 0) break;  // became shorter since fstat
    at += static_cast<size_t>(n);
  }
  close_quietly(descriptor);
  bytes.resize(at);
  return bytes;
}

std::shared_ptr<MappedFile> MappedFile::open(const std::string& path) {
  std::shared_ptr<MappedFile> file(new MappedFile);
  int descriptor = -1;
  file->path_ = path;
  size_t size = open_regular(path, descriptor);
  if (size > 0) {  // an empty mapping is an error for the system
    void* data = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, descriptor, 0);
    if (data == MAP_FAILED) {
      int code = errno;
      close_quietly(descriptor);
      fail_errno("map", path, code, str(" (", size, " bytes)"));
    }
    file->data_ = static_cast<char*>(data);
    file->size_ = size;
  }
  close_quietly(descriptor);
  return file;
}

MappedFile::~MappedFile() {
  if (data_) ::munmap(data_, size_);
}

bool file_exists(const std::string& path) {
  struct stat info {};
  return ::lstat(path.c_str(), &info) == 0;
}

bool is_folder(const std::string& path) {
  struct stat info {};
  return ::stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
}

std::vector<std::string> list_folder(const std::string& path) {
  std::unique_ptr<DIR, int (*)(DIR*)> folder(::opendir(path.c_str()), ::closedir);
  if (!folder) fail_errno("list", path, errno);
  std::vector<std::string> names;
  errno = 0;
  while (const dirent* entry = ::readdir(folder.get())) {
    std::string name = entry->d_name;
    if (name != "." && name != "..") names.push_back(std::move(name));
    errno = 0;
  }
  if (errno != 0) fail_errno("list", path, errno);
  std::sort(names.begin(), names.end());
  return names;
}

void make_folders(const std::string& path) {
  if (path.empty() || is_folder(path)) return;
  make_folders(folder_of(path));
  if (::mkdir(path.c_str(), 0777) != 0 && !(errno == EEXIST && is_folder(path))) fail_errno("make folder", path, errno);
}

void remove_folder(const std::string& path) {
  struct stat info {};
  if (::lstat(path.c_str(), &info) != 0) {
    if (errno == ENOENT) return;
    fail_errno("remove", path, errno);
  }
  if (S_ISDIR(info.st_mode)) {
    for (const std::string& name : list_folder(path)) remove_folder(path + "/" + name);
    if (::rmdir(path.c_str()) != 0) fail_errno("remove", path, errno);
  } else if (::unlink(path.c_str()) != 0) {
    fail_errno("remove", path, errno);
  }
}

void rename_path(const std::string& from, const std::string& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) fail_errno("rename " + from + " to", to, errno);
  sync_folder(folder_of(to));
}

void sync_folder(const std::string& path) {
  int descriptor = open_descriptor(path, O_RDONLY | O_DIRECTORY);
  int code = ::fsync(descriptor) != 0 ? errno : 0;
  close_quietly(descriptor);
  // Some network file systems cannot sync a folder and say EINVAL; their renames are synchronous.
  if (code != 0 && code != EINVAL) fail_errno("sync", path, code);
}

}  // namespace weft::io
