// Token shards: files of token ids, memory-mapped, with 64-bit offsets.
//   Shard shard = Shard::open("train_000000.bin");
//   std::vector<int32_t> ids(1024);
//   shard.read(0, ids);
// Kinds: `raw` (ids only), `header` (1024 bytes of header, then ids), `megatron` (name.bin with ids, name.idx with
// documents).
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "weft/core/error.h"

namespace weft::data {

enum class ShardKind : uint8_t { raw, header, megatron };
std::string_view to_string(ShardKind kind);

struct ShardOptions {
  int raw_width = 0;  // bytes per id (2 or 4) of a file without header; 0: such a file is an Error
};

// An id that is not in the vocabulary.
class IdError : public Error {
 public:
  explicit IdError(const Error& error) : Error(error) {}
};

// A handle: copies share the mapping. All members may be called from several threads at once.
class Shard {
 public:
  // The magic number tells the kind. Both name.idx and name.bin open a Megatron pair. Error if the magic number, version or width is wrong,
  // if the size does not agree with the header, or if there are no tokens.
  static Shard open(const std::string& path, ShardOptions options = {});
  // Ids in memory; `document_begins` (optional, ascending from 0) says where documents begin.
  static Shard in_memory(std::vector<int32_t> ids, std::vector<int64_t> document_begins = {},
                         std::string name = "ids in memory");

  const std::string& path() const;
  ShardKind kind() const;
  std::string_view type() const;  // of the stored ids: "u16", "u32", "i32", ...
  int64_t num_tokens() const;

  // Ids begin .. begin + out.size(). IdError (path, id, place) if an id is not in [0, vocab).
  void read(int64_t begin, std::span<int32_t> out, int64_t vocab = int64_t{1} << 31) const;

  // The largest of those ids, without copying them; 0 if there are none. The same Errors as read().
  int64_t largest_id(int64_t begin, int64_t count, int64_t vocab) const;

  // Documents of a Megatron pair, or those given to in_memory().
  bool has_documents() const { return num_documents() > 0; }
  int64_t num_documents() const;                   // 0: unknown
  int64_t document_begin(int64_t document) const;  // first token; num_tokens() for document == num_documents()
  int64_t next_document(
      int64_t token) const;  // begin of the first document that begins behind `token`, or num_tokens()

  struct Data;

 private:
  explicit Shard(std::shared_ptr<const Data> data) : data_(std::move(data)) {}
  std::shared_ptr<const Data> data_;
};

// Reads all ids, on all cores; Error with the first one that is not in [0, vocab). Returns the largest.
int64_t check_ids(const Shard& shard, int64_t vocab);

// Does the same for all shards of a run, on a thread of its own with low priority. The scan ends with the first bad id. After that every
// member throws the Error of check_ids().
class IdScan {
 public:
  IdScan(std::vector<Shard> shards, int64_t vocab);  // begins
  ~IdScan();                                         // stops it
  void look() const;                                 // throws if a bad id has been found so far
  void wait() const;                                 // until all is read

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Files that a pattern such as data/train_*.bin names, sorted. Error if there are none.
std::vector<std::string> expand_path(const std::string& pattern);

// Writes one shard. Everything goes to a temporary file, which close() syncs and renames. Without close(), no shard appears. If the new shard
// has no index and replaces the data file of a Megatron pair, the old index is removed. Error if another process is writing the same path.
class ShardWriter {
 public:
  // `width` in bytes per id, 2 or 4. Megatron: `path` is name.bin, and name.idx is written beside it.
  ShardWriter(const std::string& path, ShardKind kind, int width);
  ~ShardWriter();
  ShardWriter(ShardWriter&&) noexcept;

  void append(std::span<const int32_t> ids);  // Error on an id that does not fit the width
  void end_document();  // Megatron only: an Error for the kinds that know documents by their end-of-text id alone
  int64_t num_tokens() const;
  int64_t max_tokens() const;  // what the kind can hold
  void close();                // Error if there are no tokens

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// 2 if all ids of the vocabulary fit into 16 bits, else 4.
int id_width(int64_t vocab);

}  // namespace weft::data
