// Files that are never left half written, memory-mapped files, and the checksums of the file formats.
//   io::write_file_atomically("run/report.html", text);      // the old file or the new one, never a mixture
//   auto file = io::MappedFile::open("model.safetensors");   // keep_alive of Tensor::borrow
// Every failure is one Error with path, operation, the system's reason and the bytes written so far.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace weft::io {

// Castagnoli CRC of TensorBoard records, and its masked form: rotated right by 15, plus 0xa282ead8.
uint32_t crc32c(std::string_view bytes);
uint32_t masked_crc32c(std::string_view bytes);

// XXH3-64 with seed 0, whole or in pieces.
uint64_t xxh3_64(std::string_view bytes);

class Xxh3Stream {
 public:
  Xxh3Stream();
  ~Xxh3Stream();
  Xxh3Stream(Xxh3Stream&&) noexcept;
  Xxh3Stream& operator=(Xxh3Stream&&) noexcept;
  void update(std::string_view bytes);
  uint64_t digest() const;  // of the bytes so far

 private:
  struct State;
  std::unique_ptr<State> state_;
};

struct FileDigest {
  uint64_t size = 0;  // bytes
  uint64_t xxh3 = 0;
};

// Writes a file from front to back. `aside` writes to path + ".partial", and commit() renames that file. `in_place` is for files in a folder
// that is itself temporary. Without commit(), the destructor removes what was written, and the old file stays. `aside` writers of one path,
// in other processes too, take turns: each waits for the one before it. After 10 seconds of waiting it is an Error.
class FileWriter {
 public:
  enum class Placement { aside, in_place };

  explicit FileWriter(std::string path, Placement placement = Placement::aside);
  ~FileWriter();
  FileWriter(const FileWriter&) = delete;
  FileWriter& operator=(const FileWriter&) = delete;

  void write(std::string_view bytes);
  FileDigest commit();  // syncs the file, renames it, syncs the folder; nothing may be written after it
  const std::string& path() const { return path_; }
  uint64_t size() const { return size_; }

 private:
  std::string path_, written_path_;
  Placement placement_;
  int descriptor_ = -1;
  uint64_t size_ = 0;
  Xxh3Stream hash_;
};

FileDigest write_file_atomically(const std::string& path, std::string_view bytes);

// Appends to a file, or creates it, and syncs it. If writing fails, the part that was written is removed again.
void append_file(const std::string& path, std::string_view bytes);
// Shortens a file to its first `size` bytes and syncs it.
void cut_file(const std::string& path, uint64_t size);

// The content of a regular file. Error if it has more than `max_bytes`.
std::string read_file(const std::string& path, uint64_t max_bytes = uint64_t{1} << 30);

// A regular file mapped into memory. Pages are loaded when they are read. The mapping is private: writing to it changes this process's copy,
// never the file. If another process shortens the file while it is mapped, reading the missing part kills this process (SIGBUS).
class MappedFile {
 public:
  static std::shared_ptr<MappedFile> open(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::string& path() const { return path_; }
  std::string_view bytes() const { return {data_, size_}; }
  char* data() { return data_; }

 private:
  MappedFile() = default;
  std::string path_;
  char* data_ = nullptr;
  size_t size_ = 0;
};

bool file_exists(const std::string& path);  // anything at that path
bool is_folder(const std::string& path);
std::vector<std::string> list_folder(const std::string& path);  // names, sorted, without . and ..
void make_folders(const std::string& path);                     // with parents; fine if it exists
void remove_folder(const std::string& path);  // with content, fine if it is absent; links are not followed
void rename_path(const std::string& from, const std::string& to);  // and syncs the folder of `to`
void sync_folder(const std::string& path);

}  // namespace weft::io
