// Opening shards and reading ids from them.
#include "weft/data/shards.h"

#include <glob.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "src/data/shard_data.h"
#include "weft/core/error.h"

namespace weft::data {

namespace {

constexpr int64_t kLargestId = int64_t{1} << 31;  // ids are int32 in batches

// Calls f(pointer to the ids in their stored type). The ids of every format are aligned.
template <class F>
void with_ids(IdType type, const std::byte* ids, F&& f) {
  switch (type) {
    case IdType::u8: return f(reinterpret_cast<const uint8_t*>(ids));
    case IdType::i8: return f(reinterpret_cast<const int8_t*>(ids));
    case IdType::i16: return f(reinterpret_cast<const int16_t*>(ids));
    case IdType::i32: return f(reinterpret_cast<const int32_t*>(ids));
    case IdType::i64: return f(reinterpret_cast<const int64_t*>(ids));
    case IdType::u16: return f(reinterpret_cast<const uint16_t*>(ids));
    case IdType::u32: return f(reinterpret_cast<const uint32_t*>(ids));
  }
}

[[noreturn]] void fail_id(const std::string& path, int64_t id, int64_t token, int64_t vocab) try {
  fail(str("shard ", path, ": id ", id, " at token ", token, " is not in the vocabulary of ", vocab, " ids"),
       "use the vocabulary size of the tokenizer that wrote the shard, and check the width of raw shards");
} catch (const Error& error) { throw IdError(error); }

// A raw or header file, by its first word.
void read_header(Shard::Data& data, const ShardOptions& options) {
  const MappedFile& file = *data.file;
  WEFT_CHECK(file.size() > 0, str("shard ", data.path, ": the file is empty"),
             "write it again; a shard has at least one token");
  int32_t magic = file.size() >= 4 ? load<int32_t>(file.data()) : 0;
  WEFT_CHECK(magic != kMagicChoice,
             str("shard ", data.path, ": this is a file of multiple-choice examples (magic ", magic, ")"),
             "give a file of training tokens");
  if (magic != kMagic16 && magic != kMagic32) {
    WEFT_CHECK(options.raw_width != 0,
               str("shard ", data.path, ": wrong magic ", magic, ", expected ", kMagic16, " (uint16) or ", kMagic32,
                   " (uint32)"),
               "set the width (2 or 4) if this is a raw file of ids; `weft data tokenize` makes shards of text");
    size_t width = static_cast<size_t>(options.raw_width);
    WEFT_CHECK(width == 2 || width == 4, str("shard ", data.path, ": raw width ", width),
               "set the width to 2 or 4 bytes");
    WEFT_CHECK(file.size() % width == 0,
               str("shard ", data.path, ": ", file.size(), " bytes are not whole ids of ", width, " bytes"),
               "the file is truncated or has another width");
    data.kind = ShardKind::raw;
    data.type = width == 2 ? IdType::u16 : IdType::u32;
    data.ids = file.data();
    data.num_tokens = static_cast<int64_t>(file.size() / width);
    return;
  }
  data.kind = ShardKind::header;
  data.type = magic == kMagic16 ? IdType::u16 : IdType::u32;
  int width = width_of(data.type);
  WEFT_CHECK(file.size() >= kHeaderBytes,
             str("shard ", data.path, ": truncated: ", file.size(), " bytes, the header alone has ", kHeaderBytes),
             "write it again");
  int32_t version = load<int32_t>(file.data() + 4), expected = width == 2 ? kVersion16 : kVersion32;
  WEFT_CHECK(version == expected,
             str("shard ", data.path, ": version ", version, ", only ", expected, " is known for magic ", magic),
             "write it again with a known version");
  int32_t count = load<int32_t>(file.data() + 8);
  WEFT_CHECK(count >= 0, str("shard ", data.path, ": the header says ", count, " tokens"),
             "the header is damaged; write it again");
  WEFT_CHECK(count > 0, str("shard ", data.path, ": empty: the header says 0 tokens"),
             "a shard has at least one token");
  size_t body = file.size() - kHeaderBytes, need = static_cast<size_t>(count) * static_cast<size_t>(width);
  bool is_other_width = body == static_cast<size_t>(count) * static_cast<size_t>(6 - width);
  WEFT_CHECK(body == need,
             str("shard ", data.path, ": ",
                 is_other_width ? "wrong width"
                 : body < need  ? "truncated"
                                : "too long",
                 ": ", body, " bytes of ids, ", count, " ids of ", width, " bytes need ", need),
             "the file is damaged or unfinished; write it again");
  data.ids = file.data() + kHeaderBytes;
  data.num_tokens = count;
}

}  // namespace

std::string_view to_string(ShardKind kind) {
  return kind == ShardKind::raw ? "raw" : kind == ShardKind::header ? "header" : "megatron";
}

int width_of(IdType type) {
  switch (type) {
    case IdType::u8:
    case IdType::i8: return 1;
    case IdType::u16:
    case IdType::i16: return 2;
    case IdType::u32:
    case IdType::i32: return 4;
    case IdType::i64: return 8;
  }
  return 0;
}

std::string_view to_string(IdType type) {
  constexpr std::string_view kNames[] = {"u8", "i8", "i16", "i32", "i64", "u16", "u32"};
  return kNames[static_cast<size_t>(type)];
}

int id_width(int64_t vocab) { return vocab <= 65536 ? 2 : 4; }

Shard Shard::open(const std::string& path, ShardOptions options) {
  std::string index_path = megatron_index_path(path);
  if (!index_path.empty() && (path == index_path || is_megatron_index(index_path))) {
    std::string bin_path = index_path.substr(0, index_path.size() - 3) + "bin";
    return Shard(open_megatron(bin_path, index_path));
  }
  auto data = std::make_shared<Data>();
  data->path = path;
  data->file = std::make_unique<MappedFile>(path);
  read_header(*data, options);
  return Shard(std::move(data));
}

Shard Shard::in_memory(std::vector<int32_t> ids, std::vector<int64_t> document_begins, std::string name) {
  WEFT_CHECK(!ids.empty(), str(name, ": empty"), "give at least one token");
  auto data = std::make_shared<Data>();
  data->path = std::move(name);
  data->type = IdType::i32;
  data->owned = std::move(ids);
  data->ids = reinterpret_cast<const std::byte*>(data->owned.data());
  data->num_tokens = static_cast<int64_t>(data->owned.size());
  data->owned_documents = std::move(document_begins);
  const std::vector<int64_t>& begins = data->owned_documents;
  bool is_good = begins.empty() || (begins.front() == 0 && std::is_sorted(begins.begin(), begins.end()) &&
                                    begins.back() <= data->num_tokens);
  WEFT_CHECK(is_good, str(data->path, ": the begins of documents do not ascend from 0 to at most ", data->num_tokens),
             "give the first token of each document, in order");
  data->num_documents = static_cast<int64_t>(begins.size());
  return Shard(std::move(data));
}

const std::string& Shard::path() const { return data_->path; }
ShardKind Shard::kind() const { return data_->kind; }
std::string_view Shard::type() const { return to_string(data_->type); }
int64_t Shard::num_tokens() const { return data_->num_tokens; }
int64_t Shard::num_documents() const { return data_->num_documents; }

static void check_range(const Shard& shard, int64_t begin, int64_t count) {
  WEFT_CHECK(begin >= 0 && begin <= shard.num_tokens() && count <= shard.num_tokens() - begin,
             str("shard ", shard.path(), ": tokens ", begin, " to ", begin + count, " of ", shard.num_tokens()),
             "read inside the shard");
}

void Shard::read(int64_t begin, std::span<int32_t> out, int64_t vocab) const {
  auto count = static_cast<int64_t>(out.size());
  check_range(*this, begin, count);
  auto limit = static_cast<uint64_t>(std::clamp<int64_t>(vocab, 0, kLargestId));
  with_ids(data_->type, data_->ids, [&](const auto* ids) {
    bool is_bad = false;
    for (int64_t i = 0; i < count; ++i) {
      auto id = static_cast<int64_t>(ids[begin + i]);
      is_bad |= static_cast<uint64_t>(id) >= limit;
      out[static_cast<size_t>(i)] = static_cast<int32_t>(id);
    }
    if (!is_bad) return;
    for (int64_t i = begin;; ++i)
      if (static_cast<uint64_t>(static_cast<int64_t>(ids[i])) >= limit)
        fail_id(path(), static_cast<int64_t>(ids[i]), i, static_cast<int64_t>(limit));
  });
}

int64_t Shard::largest_id(int64_t begin, int64_t count, int64_t vocab) const {
  check_range(*this, begin, count);
  if (count == 0) return 0;
  int64_t limit = std::clamp<int64_t>(vocab, 0, kLargestId), largest = 0;
  with_ids(data_->type, data_->ids, [&](const auto* ids) {
    auto low = ids[begin], high = ids[begin];
    for (int64_t i = begin; i < begin + count; ++i) {
      low = std::min(low, ids[i]);
      high = std::max(high, ids[i]);
    }
    largest = static_cast<int64_t>(high);
    if (static_cast<int64_t>(low) >= 0 && largest < limit) return;
    for (int64_t i = begin;; ++i)
      if (auto id = static_cast<int64_t>(ids[i]); id < 0 || id >= limit) fail_id(path(), id, i, limit);
  });
  return largest;
}

int64_t Shard::document_begin(int64_t document) const {
  WEFT_CHECK(document >= 0 && document <= num_documents(),
             str("shard ", path(), ": document ", document, " of ", num_documents()),
             "ask for a document that is there");
  if (document == num_documents()) return num_tokens();
  if (!data_->index) return data_->owned_documents[static_cast<size_t>(document)];
  auto sequence = load<int64_t>(data_->document_sequences + 8 * document);
  if (sequence == data_->num_sequences) return num_tokens();
  return load<int64_t>(data_->sequence_offsets + 8 * sequence) / width_of(data_->type);
}

int64_t Shard::next_document(int64_t token) const {
  int64_t low = 0, high = num_documents();  // the first document that begins behind `token` lies in [low, high]
  while (low < high) {
    int64_t middle = low + (high - low) / 2;
    if (document_begin(middle) > token) high = middle;
    else low = middle + 1;
  }
  return document_begin(low);
}

std::vector<std::string> expand_path(const std::string& pattern) {
  if (pattern.find_first_of("*?[") == std::string::npos || file_exists(pattern)) {
    WEFT_CHECK(file_exists(pattern), str("no file ", pattern), "check the path");
    return {pattern};
  }
  glob_t found{};
  int status = ::glob(pattern.c_str(), 0, nullptr, &found);
  std::vector<std::string> paths(found.gl_pathv, found.gl_pathv + (status == 0 ? found.gl_pathc : 0));
  ::globfree(&found);
  WEFT_CHECK(!paths.empty(), str("no file matches ", pattern), "check the pattern, and quote it in a shell");
  std::sort(paths.begin(), paths.end());
  return paths;
}

}  // namespace weft::data
