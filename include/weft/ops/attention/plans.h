// What calls of attention over the same tokens keep from one to the next: numbers that depend on positions, documents and the mask alone.
// Every head, every layer and the backward read what the first call made.
#pragma once

#include <vector>

#include "weft/ops/attention.h"
#include "weft/ops/attention/mask.h"

namespace weft::ops {

class AttentionPlans {
 public:
  explicit AttentionPlans(const AttentionTokens& tokens)
      : positions_(tokens.positions), documents_(tokens.documents), versions_(versions()) {}

  // Whether they are of these tokens: the same places in memory. If numbers there were written since, what was kept is dropped.
  bool serve(const AttentionTokens& tokens);

  // What something was made for: `step` tokens of one side, or the tiles of a mask, whose lanes are queries or keys.
  enum class Kind : uint8_t { ranges, query_tiles, key_tiles };
  struct Key {
    Kind kind = Kind::ranges;
    int64_t step = 0;                                   // tokens of a range, or of a panel of lanes
    StandardMask mask = StandardMask(AttentionMask{});  // of tiles
    bool operator==(const Key&) const = default;
  };
  // Memory, as kernels of several instruction sets fill and read it: it is there until the next call of serve().
  struct Kept {
    const void* data = nullptr;  // null where it would be too much
    bool is_made = false;
  };
  Kept find(const Key& key) const;
  void* keep(const Key& key, int64_t bytes);  // what find() then gives; null for 0 bytes
  int64_t num_kept() const { return static_cast<int64_t>(entries_.size()); }

 private:
  struct Entry {
    Key key;
    Tensor memory;
  };
  struct Versions {
    uint64_t of_positions = 0, of_documents = 0;
    bool operator==(const Versions&) const = default;
  };
  Versions versions() const { return {positions_.version(), documents_.version()}; }

  Tensor positions_, documents_;  // held, so that nothing else comes to stand there
  Versions versions_;
  std::vector<Entry> entries_;
};

}  // namespace weft::ops
