// Files as this layer uses them: read whole, mapped read-only, or written aside, synced and renamed.
// Every failure is an Error with the path and the system's reason.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

namespace weft::data {

// Whole content of a regular file of at most `max_bytes`.
std::string read_file(const std::string& path, size_t max_bytes);
bool file_exists(const std::string& path);
void remove_file(const std::string& path);  // no error if it is not there

// A regular file read from front to back.
class InputFile {
 public:
  explicit InputFile(const std::string& path);
  ~InputFile();
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;

  size_t read(void* to, size_t num_bytes);  // fewer only at the end
  size_t size() const { return size_; }     // when it was opened
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  size_t size_ = 0, done_ = 0;
  int file_ = -1;
};

// A regular file mapped read-only. The file must not be shortened while it is mapped.
class MappedFile {
 public:
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::byte* data() const { return data_; }
  size_t size() const { return size_; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// Writes to `path`.partial; commit() syncs it and renames it to `path`. Without commit() the partial file is removed
// and whatever stood at `path` stays. Error if another writer of `path`, in this process or another one, is still at
// work after `patience_s`.
class AsideFile {
 public:
  explicit AsideFile(std::string path, double patience_s = 0);
  ~AsideFile();
  AsideFile(const AsideFile&) = delete;
  AsideFile& operator=(const AsideFile&) = delete;

  void write(const void* bytes, size_t num_bytes);                      // buffered
  void write_at(uint64_t offset, const void* bytes, size_t num_bytes);  // over what was written before
  void commit();
  const std::string& path() const { return path_; }

 private:
  void flush();

  std::string path_, partial_, buffer_;
  int file_ = -1;
};

// While it lives, nobody else holds a lock of that path. The file is there only as long.
class FileLock {
 public:
  static std::unique_ptr<FileLock> take(const std::string& path);  // none if another one has it
  ~FileLock();
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;

 private:
  FileLock(std::string path, int file) : path_(std::move(path)), file_(file) {}
  std::string path_;
  int file_;
};

void write_file(const std::string& path, std::string_view content);  // through AsideFile

// FNV-1a over texts and numbers; good enough to notice a change, not against an adversary.
class Fingerprint {
 public:
  Fingerprint& add(std::string_view bytes);
  Fingerprint& add(uint64_t number);
  uint64_t value() const { return hash_; }

 private:
  uint64_t hash_ = 0xcbf29ce484222325u;
};

}  // namespace weft::data
