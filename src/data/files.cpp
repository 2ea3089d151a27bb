#include "src/data/files.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

#include "src/core/file_lock.h"
#include "weft/core/error.h"

namespace weft::data {

namespace {

constexpr size_t kBufferBytes = size_t{1} << 20;
constexpr double kPatience_s = 10;  // writers of a small file take turns

std::string reason() { return std::strerror(errno); }

// Closes a descriptor when the scope ends.
struct Descriptor {
  int number = -1;
  ~Descriptor() {
    if (number >= 0) ::close(number);
  }
};

// Opens a regular file for reading and tells its size.
Descriptor open_regular(const std::string& path, size_t& size) {
  Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};  // not to hang on a named pipe
  WEFT_CHECK(file.number >= 0, str("cannot open ", path, ": ", reason()), "check the path and its permissions");
  struct stat info {};
  WEFT_CHECK(::fstat(file.number, &info) == 0, str("cannot read the size of ", path, ": ", reason()), "check the disk");
  WEFT_CHECK(S_ISREG(info.st_mode), str(path, " is not a regular file"), "give the path of a file");
  size = static_cast<size_t>(info.st_size);
  return Descriptor{std::exchange(file.number, -1)};
}

void write_all(int file, const std::string& path, const char* bytes, size_t num_bytes) {
  while (num_bytes > 0) {
    ssize_t written = ::write(file, bytes, num_bytes);
    if (written < 0 && errno == EINTR) continue;
    WEFT_CHECK(written > 0, str("cannot write ", path, ": ", reason()),
               "free some disk space or choose another folder");
    bytes += written;
    num_bytes -= static_cast<size_t>(written);
  }
}

void sync_folder(const std::string& path) {
  std::filesystem::path folder = std::filesystem::path(path).parent_path();
  Descriptor file{::open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)};
  // Some file systems cannot sync a folder; the rename itself has succeeded then.
  if (file.number >= 0) (void)::fsync(file.number);
}

}  // namespace

InputFile::InputFile(const std::string& path) : path_(path) {
  Descriptor opened = open_regular(path, size_);
  file_ = std::exchange(opened.number, -1);
}

InputFile::~InputFile() {
  if (file_ >= 0) ::close(file_);
}

size_t InputFile::read(void* to, size_t num_bytes) {
  size_t got = 0;
  while (got < num_bytes) {
    ssize_t n = ::read(file_, static_cast<char*>(to) + got, std::min(num_bytes - got, size_t{1} << 30));
    if (n < 0 && errno == EINTR) continue;
    WEFT_CHECK(n >= 0, str("cannot read ", path_, " at byte ", done_ + got, ": ", reason()), "check the disk");
    if (n == 0) break;
    got += static_cast<size_t>(n);
  }
  done_ += got;
  return got;
}

std::string read_file(const std::string& path, size_t max_bytes) {
  InputFile file(path);
  WEFT_CHECK(file.size() <= max_bytes,
             str(path, " has ", file.size(), " bytes, more than the ", max_bytes, " such a file may have"),
             "check that this is the right file");
  std::string content(file.size(), '\0');
  size_t got = file.read(content.data(), content.size());
  WEFT_CHECK(got == content.size(), str("cannot read ", path, " at byte ", got, ": it became shorter"),
             "check the disk");
  return content;
}

bool file_exists(const std::string& path) {
  std::error_code code;
  return std::filesystem::exists(path, code);
}

void remove_file(const std::string& path) { ::unlink(path.c_str()); }

MappedFile::MappedFile(const std::string& path) : path_(path) {
  Descriptor file = open_regular(path, size_);
  if (size_ == 0) return;
  void* memory = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, file.number, 0);
  WEFT_CHECK(memory != MAP_FAILED, str("cannot map ", path, " (", size_, " bytes): ", reason()),
             "check the limit of address space (ulimit -v)");
  data_ = static_cast<const std::byte*>(memory);
}

MappedFile::~MappedFile() {
  if (data_) ::munmap(const_cast<std::byte*>(data_), size_);
}

AsideFile::AsideFile(std::string path, double patience_s) : path_(std::move(path)), partial_(path_ + ".partial") {
  file_ = open_locked(partial_, patience_s);
  WEFT_CHECK(file_ >= 0 || errno != EWOULDBLOCK, str("cannot write ", path_, ": another process is writing it"),
             "wait until it is done, or choose another name");
  // What a killed writer left goes away here.
  WEFT_CHECK(file_ >= 0 && ::ftruncate(file_, 0) == 0, str("cannot create ", partial_, ": ", reason()),
             "check that the folder exists and is writable");
  buffer_.reserve(kBufferBytes);
}

AsideFile::~AsideFile() {
  if (file_ < 0) return;
  ::unlink(partial_.c_str());  // before the lock ends: afterwards the name may be another writer's
  ::close(file_);
}

void AsideFile::write(const void* bytes, size_t num_bytes) {
  if (buffer_.size() + num_bytes > kBufferBytes) flush();
  if (num_bytes > kBufferBytes) return write_all(file_, partial_, static_cast<const char*>(bytes), num_bytes);
  buffer_.append(static_cast<const char*>(bytes), num_bytes);
}

void AsideFile::write_at(uint64_t offset, const void* bytes, size_t num_bytes) {
  flush();
  ssize_t written = ::pwrite(file_, bytes, num_bytes, static_cast<off_t>(offset));
  WEFT_CHECK(written == static_cast<ssize_t>(num_bytes), str("cannot write ", partial_, ": ", reason()),
             "free some disk space or choose another folder");
}

void AsideFile::flush() {
  write_all(file_, partial_, buffer_.data(), buffer_.size());
  buffer_.clear();
}

void AsideFile::commit() {
  flush();
  WEFT_CHECK(::fsync(file_) == 0, str("cannot write ", partial_, " to the disk: ", reason()),
             "free some disk space or choose another folder");
  const Descriptor lock{::fcntl(file_, F_DUPFD_CLOEXEC, 0)};  // held until the name is given
  WEFT_CHECK(lock.number >= 0, str("cannot write ", path_, ": ", reason()),
             "raise the limit on open files (ulimit -n)");
  int closed = ::close(std::exchange(file_, -1));
  bool is_renamed = closed == 0 && ::rename(partial_.c_str(), path_.c_str()) == 0;
  std::string why = is_renamed ? "" : reason();
  if (!is_renamed) ::unlink(partial_.c_str());
  WEFT_CHECK(is_renamed, str("cannot write ", path_, ": ", why), "check the folder's permissions");
  sync_folder(path_);
}

std::unique_ptr<FileLock> FileLock::take(const std::string& path) {
  int file = open_locked(path, 0);
  WEFT_CHECK(file >= 0 || errno == EWOULDBLOCK, str("cannot create ", path, ": ", reason()),
             "check that the folder exists and is writable");
  return file < 0 ? nullptr : std::unique_ptr<FileLock>(new FileLock(path, file));
}

FileLock::~FileLock() {
  ::unlink(path_.c_str());  // before the lock ends: afterwards the name may be another one's
  ::close(file_);
}

void write_file(const std::string& path, std::string_view content) {
  AsideFile file(path, kPatience_s);
  file.write(content.data(), content.size());
  file.commit();
}

Fingerprint& Fingerprint::add(std::string_view bytes) {
  for (char c : bytes) hash_ = (hash_ ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return add(static_cast<uint64_t>(bytes.size()));
}

Fingerprint& Fingerprint::add(uint64_t number) {
  for (int i = 0; i < 8; ++i, number >>= 8) hash_ = (hash_ ^ (number & 0xff)) * 0x100000001b3u;
  return *this;
}

}  // namespace weft::data
