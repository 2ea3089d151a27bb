// Which tokens of a sequence each rank has. A layout is only a map from (rank, local index) to the position in the sequence: masks, rotations,
// labels and random numbers read positions, so no other code knows the layout. N tokens, P ranks.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace weft::dist {

// contiguous  rank r has the r-th part
// striped     blocks are dealt in turn: block b belongs to rank b mod P (Striped Attention, 2311.09431, with blocks of one token)
// zigzag      2 P parts: rank r has part r and part 2 P - 1 - r, so that causal work is equal
// balanced    blocks are sorted by their work and dealt in snake order (0 .. P-1, P-1 .. 0, ...): for documents and windows
enum class LayoutKind { contiguous, striped, zigzag, balanced };
std::string_view to_string(LayoutKind kind);

// Which keys a query sees, as ops::AttentionMask says it: those of its document at or before its position, the last `window` of them (0: all);
// without is_causal and a window those behind it too; and those at positions < prefix.
struct TokenMask {
  int64_t window = 0;
  // Of each of the N tokens; empty: one document; -1: padding, which sees nothing and is not seen.
  std::vector<int32_t> documents = {};
  bool is_causal = true;
  int64_t prefix = 0;
};

class Layout {
 public:
  // Sequences whose length does not divide are padded at their end: padded_tokens() is the next length that does. `block`: tokens per block of
  // striped and balanced layouts, which is best the tile of the kernel.
  static Layout contiguous(int64_t tokens, int ranks);
  static Layout striped(int64_t tokens, int ranks, int64_t block = 64);
  static Layout zigzag(int64_t tokens, int ranks);
  static Layout balanced(int64_t tokens, int ranks, const TokenMask& mask, int64_t block = 64);

  LayoutKind kind() const { return kind_; }
  int64_t tokens() const { return tokens_; }
  int64_t padded_tokens() const { return static_cast<int64_t>(owners_.size()) * block_; }
  int64_t tokens_per_rank() const { return padded_tokens() / ranks_; }
  int ranks() const { return ranks_; }
  int64_t block() const { return block_; }
  // Of the tokens of a rank, ascending; tokens() and above are padding.
  std::vector<int32_t> positions(int rank) const;
  int owner(int64_t position) const { return owners_[static_cast<size_t>(position / block_)]; }
  bool operator==(const Layout&) const = default;

 private:
  Layout(LayoutKind kind, int64_t tokens, int ranks, int64_t block, int64_t blocks_per_rank);

  LayoutKind kind_;
  int64_t tokens_;
  int ranks_;
  int64_t block_;
  std::vector<int> owners_;  // of each block
};
std::string to_string(const Layout& layout);  // "zigzag of 4096 tokens over 4 ranks"

// What a rank's queries see of the keys that it holds at one hop of a ring.
enum class Cover : uint8_t { empty, partial, full };

// Tokens begin .. end - 1 of those that a rank has of a row.
struct TokenRange {
  int64_t begin = 0, end = 0;

  static constexpr TokenRange all() { return {0, INT64_MAX}; }
  bool is_empty() const { return begin >= end; }
  bool contains(const TokenRange& other) const { return begin <= other.begin && other.end <= end; }
  TokenRange of(int64_t tokens) const { return {begin, end < tokens ? end : tokens}; }  // as far as there are any
  TokenRange joined(const TokenRange& other) const;  // the smallest that contains both
  bool operator==(const TokenRange&) const = default;
};

// The hops of a ring: at hop s rank r holds the keys of rank (r - s) mod P. Every rank makes the same plan from the layout and the mask.
struct HopPlan {
  int ranks = 1;
  int steps = 1;                    // hops that have work for some rank; the ring stops after them
  std::vector<Cover> cover = {};    // [ranks, ranks]: of (rank, hop)
  std::vector<int64_t> pairs = {};  // [ranks, ranks]: visible (query, key) pairs of (rank, hop)
  std::vector<int64_t> tiles = {};  // [ranks, ranks]: tiles of `tile` x `tile` with a visible pair
  int64_t tile = 64;
  int64_t tokens = 0;  // of a rank and row
  // [ranks, ranks]: of (rank, hop) the keys that some query sees, and the queries that see some key. Empty: not known, all.
  std::vector<TokenRange> keys = {}, queries = {};

  // All hops, all of them partial: of no plan.
  static HopPlan every_hop(int ranks);

  bool has_work(int rank, int hop) const { return cover_of(rank, hop) != Cover::empty; }
  Cover cover_of(int rank, int hop) const { return cover[static_cast<size_t>(rank * ranks + hop)]; }
  int64_t pairs_of(int rank, int hop) const { return pairs[static_cast<size_t>(rank * ranks + hop)]; }
  TokenRange keys_of(int rank, int hop) const { return range_of(keys, rank, hop); }
  TokenRange queries_of(int rank, int hop) const { return range_of(queries, rank, hop); }
  // Ratios to the work of P equal ranks, 1 at best. Lock-step: each hop lasts as long as its slowest rank. Of tiles: every tile with a
  // visible pair costs all of its pairs.
  double lockstep_pairs() const;
  double lockstep_tiles() const;
  double rank_pairs() const;  // the largest total of a rank
  double rank_tiles() const;

 private:
  TokenRange range_of(const std::vector<TokenRange>& ranges, int rank, int hop) const {
    if (!has_work(rank, hop)) return {};
    return ranges.empty() ? TokenRange::all() : ranges[static_cast<size_t>(rank * ranks + hop)];
  }
};
HopPlan plan_hops(const Layout& layout, const TokenMask& mask, int64_t tile = 64);

// Tokens as they stand on a rank, row by row of a batch: position in the row, and document (-1: padding); documents may be empty.
struct RankTokens {
  std::vector<int32_t> positions, documents = {};
};
// The same from the tokens of all ranks, which may stand in any order and have other documents in each row: those of `mask` do not count. It
// counts pairs, but no tiles.
HopPlan plan_hops(std::span<const RankTokens> ranks, int64_t batch, const TokenMask& mask);

}  // namespace weft::dist
