// The index file of a Megatron pair. The whole index is checked when it is opened, so that look-ups need no checks.
#include <algorithm>
#include <filesystem>

#include "src/data/shard_data.h"
#include "weft/core/error.h"
#include "weft/core/parallel.h"

namespace weft::data {

namespace {

constexpr const char* kFix = "the pair is damaged or its files do not belong together; write it again";

IdType type_of(uint8_t code, const std::string& path) {
  switch (code) {
    case 1: return IdType::u8;
    case 2: return IdType::i8;
    case 3: return IdType::i16;
    case 4: return IdType::i32;
    case 5: return IdType::i64;
    case 8: return IdType::u16;
    default: break;
  }
  fail(str("shard ", path, ": element type ", code, code == 6 || code == 7 ? " (floating point)" : "",
           " cannot hold ids; known are 1 u8, 2 i8, 3 i16, 4 i32, 5 i64, 8 u16"),
       "write the pair again with an integer type");
}

// Calls check(i) for all i, on all cores; what it throws comes out.
template <class F>
void check_all(int64_t count, F&& check) {
  parallel_for(count, 1 << 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) check(i);
  });
}

void read_index(Shard::Data& data) {
  const MappedFile& index = *data.index;
  const std::string& path = index.path();
  bool has_magic =
      index.size() >= sizeof kMegatronMagic && std::memcmp(index.data(), kMegatronMagic, sizeof kMegatronMagic) == 0;
  WEFT_CHECK(has_magic, str("shard ", path, ": wrong magic, expected MMIDIDX"), "give the index of a Megatron pair");
  WEFT_CHECK(index.size() >= kMegatronHeaderBytes, str("shard ", path, ": truncated: ", index.size(), " bytes"), kFix);
  auto version = load<uint64_t>(index.data() + 9);
  WEFT_CHECK(version == 1, str("shard ", path, ": version ", version, ", only 1 is known"), kFix);
  data.type = type_of(load<uint8_t>(index.data() + 17), path);
  auto sequences = load<uint64_t>(index.data() + 18), documents = load<uint64_t>(index.data() + 26);
  size_t room = index.size() - kMegatronHeaderBytes;
  bool fits = sequences <= room / 12 && documents <= room / 8 && sequences * 12 + documents * 8 <= room;
  WEFT_CHECK(fits,
             str("shard ", path, ": truncated: ", index.size(), " bytes cannot hold ", sequences, " sequences and ",
                 documents, " document indices"),
             kFix);
  size_t rest = room - sequences * 12 - documents * 8;  // the optional mode bytes
  WEFT_CHECK(rest == 0 || rest == sequences, str("shard ", path, ": ", rest, " bytes behind the index"), kFix);
  WEFT_CHECK(sequences > 0 && documents > 1,
             str("shard ", path, ": empty: ", sequences, " sequences, ", documents, " document indices"),
             "a shard has at least one token");

  const std::byte* lengths = index.data() + kMegatronHeaderBytes;
  data.num_sequences = static_cast<int64_t>(sequences);
  data.num_documents = static_cast<int64_t>(documents) - 1;
  data.sequence_offsets = lengths + 4 * sequences;
  data.document_sequences = data.sequence_offsets + 8 * sequences;
  int64_t width = width_of(data.type), last = data.num_sequences - 1;
  auto length = [&](int64_t i) { return static_cast<int64_t>(load<int32_t>(lengths + 4 * i)); };
  auto offset = [&](int64_t i) { return load<int64_t>(data.sequence_offsets + 8 * i); };
  auto document = [&](int64_t i) { return load<int64_t>(data.document_sequences + 8 * i); };
  auto bin_bytes = static_cast<int64_t>(data.file->size());
  check_all(data.num_sequences, [&](int64_t i) {
    WEFT_CHECK(length(i) >= 0, str("shard ", path, ": sequence ", i, " has ", length(i), " tokens"), kFix);
    int64_t begin = offset(i), end = i == last ? bin_bytes : offset(i + 1);
    bool is_inside = begin >= 0 && begin <= bin_bytes && (i > 0 || begin == 0);
    WEFT_CHECK(is_inside, str("shard ", path, ": sequence ", i, " begins at byte ", begin, " of ", bin_bytes), kFix);
    WEFT_CHECK(begin + length(i) * width == end,
               i == last
                   ? str("shard ", data.path, ": ", begin + length(i) * width > bin_bytes ? "truncated" : "too long",
                         ": ", bin_bytes, " bytes, the index needs ", begin + length(i) * width)
                   : str("shard ", path, ": sequence ", i, " ends at byte ", begin + length(i) * width,
                         ", the next begins at ", end),
               kFix);
  });
  check_all(data.num_documents + 1, [&](int64_t i) {
    bool is_good = i == 0 ? document(0) == 0 : document(i) >= document(i - 1);
    if (i == data.num_documents) is_good = is_good && document(i) == data.num_sequences;
    WEFT_CHECK(is_good,
               str("shard ", path, ": document index ", i, " is ", document(i), " of ", sequences, " sequences"), kFix);
  });
  data.num_tokens = bin_bytes / width;
  WEFT_CHECK(data.num_tokens > 0, str("shard ", data.path, ": empty: no tokens"), "a shard has at least one token");
}

}  // namespace

std::string megatron_index_path(const std::string& path) {
  std::filesystem::path name(path);
  if (name.extension() != ".bin" && name.extension() != ".idx") return "";
  return path.substr(0, path.size() - 3) + "idx";
}

bool is_megatron_index(const std::string& path) {
  if (!file_exists(path)) return false;
  MappedFile file(path);
  return file.size() >= sizeof kMegatronMagic && std::memcmp(file.data(), kMegatronMagic, sizeof kMegatronMagic) == 0;
}

std::shared_ptr<Shard::Data> open_megatron(const std::string& bin_path, const std::string& index_path) {
  auto data = std::make_shared<Shard::Data>();
  data->path = bin_path;
  data->kind = ShardKind::megatron;
  data->index = std::make_unique<MappedFile>(index_path);
  data->file = std::make_unique<MappedFile>(bin_path);
  data->ids = data->file->data();
  read_index(*data);
  return data;
}

}  // namespace weft::data
