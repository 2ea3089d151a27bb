// Byte-pair encoding on byte strings: merge ranks, merging of one piece, and the cache of pieces.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "src/data/pretokenize.h"

namespace weft::data {

// (left id, right id) -> (rank, id of the merged string). Open addressing: this look-up is the inner loop of encoding.
class MergeTable {
 public:
  struct Merge {
    uint64_t pair = kNone;
    uint32_t rank = 0;
    int32_t id = 0;
  };
  explicit MergeTable(size_t num_merges = 0);
  bool insert(int32_t left, int32_t right, uint32_t rank, int32_t id);  // false if the pair is there already
  const Merge* find(int32_t left, int32_t right) const;

 private:
  static constexpr uint64_t kNone = ~uint64_t{0};
  size_t slot(uint64_t pair) const { return static_cast<size_t>((pair * 0x9e3779b97f4a7c15u) >> shift_); }

  std::vector<Merge> slots_;
  int shift_ = 63;
};

// Finds a std::string by a std::string_view.
struct BytesHash : std::hash<std::string_view> {
  using is_transparent = void;
};

// What the vocabulary files say.
struct BpeModel {
  std::vector<std::string> bytes;  // of each id
  std::vector<bool> is_special;    // neither a byte nor the result of a merge: never encoded
  std::array<int32_t, 256> byte_ids{};
  MergeTable merges;
  std::unordered_map<std::string, int32_t, BytesHash, std::equal_to<>>
      whole_pieces;          // that are one id whatever the merges say; empty: none
  int32_t end_of_text = -1;  // "<|endoftext|>", -1 if absent
  uint64_t fingerprint = 0;
};

// Of a tokenizer.json: the model, how texts are cut, and the special ids that its template puts around a text.
struct TokenizerFile {
  BpeModel model;
  const PiecePattern* pattern = nullptr;
  bool is_composed = false;  // texts are brought to NFC first
  std::vector<int32_t> before = {}, behind = {};
};
TokenizerFile read_tokenizer_json(const std::string& path);

BpeModel read_gpt2_files(const std::string& vocab_path, const std::string& merges_path);

// Encodes pieces; holds scratch memory and a bounded cache, so each thread uses its own.
class BpeEncoder {
 public:
  explicit BpeEncoder(const BpeModel& model);
  void encode(std::string_view piece, std::vector<int32_t>& out);  // appends

 private:
  // Direct-mapped: a piece replaces whatever stood in its slot. 64 bytes, one cache line.
  struct Cached {
    static constexpr size_t kMaxBytes = 22, kMaxIds = 10;
    int32_t ids[kMaxIds];
    uint8_t num_bytes, num_ids;
    char bytes[kMaxBytes];
  };
  struct Candidate {  // the pair of symbols `left`, `right` that begins at `at` had this rank when it was pushed
    uint32_t rank, at;
    int32_t left, right;
  };
  void merge(std::string_view piece);  // fills symbols_ and next_
  void push(uint32_t at);

  const BpeModel& model_;
  std::vector<Cached> cache_;
  std::vector<int32_t> symbols_;           // id, or -1 where a symbol was merged into its left neighbour
  std::vector<uint32_t> next_, previous_;  // linked list over the symbols
  std::vector<Candidate> heap_, same_rank_;
};

}  // namespace weft::data
