// Writing shards: ids go to a file aside in their stored width; close() adds the header or the index, syncs and
// renames.
#include <algorithm>
#include <limits>
#include <utility>

#include "src/data/shard_data.h"
#include "weft/core/error.h"

namespace weft::data {

namespace {

constexpr int64_t kMaxSequence = std::numeric_limits<int32_t>::max();

template <class T>
void write_array(AsideFile& file, const std::vector<T>& values) {
  file.write(values.data(), values.size() * sizeof(T));
}

}  // namespace

struct ShardWriter::State {
  State(const std::string& path, ShardKind k, int w) : file(path), kind(k), width(w) {}

  AsideFile file;
  ShardKind kind;
  int width;
  int64_t num_tokens = 0;
  int64_t document_begin = 0;    // first token of the unfinished document
  std::vector<int32_t> lengths;  // of sequences; a very long document has several
  std::vector<int64_t> documents = {0};
  std::vector<uint16_t> narrow;  // scratch

  void end_document();
  void write_index();
};

ShardWriter::ShardWriter(const std::string& path, ShardKind kind, int width) {
  WEFT_CHECK(width == 2 || width == 4, str("shard ", path, ": width ", width), "use 2 or 4 bytes per id");
  bool has_name = kind != ShardKind::megatron || (path.ends_with(".bin") && path.size() > 4);
  WEFT_CHECK(has_name, str("shard ", path, ": a Megatron pair needs a name that ends with .bin"),
             str("write ", path, ".bin"));
  WEFT_CHECK(kind == ShardKind::megatron || !path.ends_with(".idx"),
             str("shard ", path, ": the name of an index for a shard without one"), "use a name that ends with .bin");
  state_ = std::make_unique<State>(path, kind, width);
  std::vector<char> header(kind == ShardKind::header ? kHeaderBytes : 0);
  state_->file.write(header.data(), header.size());
}

ShardWriter::~ShardWriter() = default;
ShardWriter::ShardWriter(ShardWriter&&) noexcept = default;

int64_t ShardWriter::num_tokens() const { return state_->num_tokens; }
int64_t ShardWriter::max_tokens() const {
  return state_->kind == ShardKind::header ? kMaxHeaderTokens : std::numeric_limits<int64_t>::max() / 8;
}

void ShardWriter::append(std::span<const int32_t> ids) {
  State& s = *state_;
  const std::string& path = s.file.path();
  auto count = static_cast<int64_t>(ids.size());
  WEFT_CHECK(count <= max_tokens() - s.num_tokens, str("shard ", path, ": more than ", max_tokens(), " tokens"),
             "write several shards");
  int64_t limit = s.width == 2 ? 65536 : int64_t{1} << 31;
  for (size_t i = 0; i < ids.size(); ++i)
    WEFT_CHECK(ids[i] >= 0 && ids[i] < limit,
               str("shard ", path, ": id ", ids[i], " does not fit into ", s.width, " bytes"),
               s.width == 2 ? "write 4 bytes per id" : "ids are not negative");
  if (s.width == 2) {
    s.narrow.assign(ids.begin(), ids.end());
    write_array(s.file, s.narrow);
  } else {
    s.file.write(ids.data(), ids.size() * 4);
  }
  s.num_tokens += count;
}

void ShardWriter::State::end_document() {
  int64_t rest = num_tokens - document_begin;
  do {
    lengths.push_back(static_cast<int32_t>(std::min(rest, kMaxSequence)));
    rest -= lengths.back();
  } while (rest > 0);
  documents.push_back(static_cast<int64_t>(lengths.size()));
  document_begin = num_tokens;
}

void ShardWriter::end_document() {
  WEFT_CHECK(state_->kind == ShardKind::megatron,
             str("shard ", state_->file.path(), ": a shard of kind ", state_->kind, " keeps no index of documents"),
             "write a Megatron pair, or an end-of-text id behind each document");
  state_->end_document();
}

void ShardWriter::State::write_index() {
  AsideFile index(megatron_index_path(file.path()));
  index.write(kMegatronMagic, sizeof kMegatronMagic);
  std::vector<int64_t> offsets;
  int64_t offset = 0;
  for (int32_t length : lengths) {
    offsets.push_back(offset);
    offset += int64_t{length} * width;
  }
  uint64_t version = 1, counts[2] = {lengths.size(), documents.size()};
  uint8_t type = width == 2 ? 8 : 4;
  index.write(&version, 8);
  index.write(&type, 1);
  index.write(counts, 16);
  write_array(index, lengths);
  write_array(index, offsets);
  write_array(index, documents);
  remove_file(index.path());  // of an older pair; at no moment do two files stand there that do not belong together
  file.commit();
  index.commit();
}

// The new data would be read by the index of the pair that it replaces.
static void remove_index(const std::string& path) {
  std::string index = megatron_index_path(path);
  if (index.empty() || !is_megatron_index(index)) return;
  remove_file(index);
  WEFT_CHECK(!file_exists(index), str("cannot remove ", index, ", the index of the pair that ", path, " replaces"),
             "remove it, or choose another name");
}

void ShardWriter::close() {
  State& s = *state_;
  WEFT_CHECK(s.num_tokens > 0, str("shard ", s.file.path(), ": empty"), "a shard has at least one token");
  if (s.kind == ShardKind::megatron) {
    if (s.num_tokens > s.document_begin) s.end_document();
    return s.write_index();
  }
  if (s.kind == ShardKind::header) {
    bool is_narrow = s.width == 2;
    int32_t words[3] = {is_narrow ? kMagic16 : kMagic32, is_narrow ? kVersion16 : kVersion32,
                        static_cast<int32_t>(s.num_tokens)};
    s.file.write_at(0, words, sizeof words);
  }
  remove_index(s.file.path());
  s.file.commit();
}

}  // namespace weft::data
