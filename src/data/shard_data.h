// What a Shard holds: where the ids are and how they are stored, and an index of documents if there is one.
// All formats are little-endian.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "src/data/files.h"
#include "weft/data/shards.h"

namespace weft::data {

static_assert(std::endian::native == std::endian::little, "shards are read and written in the machine's byte order");

inline constexpr int32_t kMagic16 = 20240520, kMagic32 = 20240801, kMagicChoice = 20240522;
inline constexpr int32_t kVersion16 = 1, kVersion32 = 7;
inline constexpr size_t kHeaderBytes = 1024;
inline constexpr int64_t kMaxHeaderTokens = (int64_t{1} << 31) - 1;
inline constexpr char kMegatronMagic[9] = {'M', 'M', 'I', 'D', 'I', 'D', 'X', 0, 0};
inline constexpr size_t kMegatronHeaderBytes = 34;

enum class IdType : uint8_t { u8, i8, i16, i32, i64, u16, u32 };
int width_of(IdType type);
std::string_view to_string(IdType type);

// A number at any address.
template <class T>
T load(const std::byte* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

struct Shard::Data {
  std::string path;
  ShardKind kind = ShardKind::raw;
  IdType type = IdType::u16;
  const std::byte* ids = nullptr;
  int64_t num_tokens = 0;

  // Megatron: int64 offset of each sequence and int64 first sequence of each document, inside `index`.
  const std::byte* sequence_offsets = nullptr;
  const std::byte* document_sequences = nullptr;
  int64_t num_sequences = 0, num_documents = 0;

  std::unique_ptr<MappedFile> file, index;  // what the pointers point into
  std::vector<int32_t> owned;
  std::vector<int64_t> owned_documents;
};

// Opens name.bin and name.idx.
std::shared_ptr<Shard::Data> open_megatron(const std::string& bin_path, const std::string& index_path);

// "x/name.bin" or "x/name.idx" -> "x/name.idx"; "" for other names.
std::string megatron_index_path(const std::string& path);
bool is_megatron_index(const std::string& path);

}  // namespace weft::data
