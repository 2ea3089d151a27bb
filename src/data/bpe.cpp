// Merging one piece of n bytes takes O(n log n): a heap of candidate pairs by (rank, position) over a linked list of
// symbols. All pairs of the lowest rank are merged from left to right before any other pair is looked at.
#include "src/data/bpe.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "weft/core/error.h"

namespace weft::data {

namespace {

constexpr size_t kCacheSlots = size_t{1} << 15;  // 2 MiB per encoder
constexpr uint32_t kEnd = 0xffffffffu;

uint64_t hash_bytes(std::string_view bytes) {
  uint64_t hash = bytes.size() * 0x9e3779b97f4a7c15u;
  for (size_t at = 0; at < bytes.size(); at += 8) {
    uint64_t word = 0;
    std::memcpy(&word, bytes.data() + at, std::min<size_t>(8, bytes.size() - at));
    hash = (hash ^ word) * 0xff51afd7ed558ccdu;
    hash ^= hash >> 32;
  }
  return hash;
}

uint64_t pair_of(int32_t left, int32_t right) {
  return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
}

}  // namespace

MergeTable::MergeTable(size_t num_merges) {
  size_t slots = std::bit_ceil(std::max<size_t>(num_merges * 2, 2));
  slots_.resize(slots);
  shift_ = 64 - std::countr_zero(slots);
}

bool MergeTable::insert(int32_t left, int32_t right, uint32_t rank, int32_t id) {
  uint64_t pair = pair_of(left, right);
  size_t at = slot(pair);
  for (; slots_[at].pair != kNone; at = (at + 1) & (slots_.size() - 1))
    if (slots_[at].pair == pair) return false;
  slots_[at] = {pair, rank, id};
  return true;
}

const MergeTable::Merge* MergeTable::find(int32_t left, int32_t right) const {
  uint64_t pair = pair_of(left, right);
  for (size_t at = slot(pair);; at = (at + 1) & (slots_.size() - 1)) {
    if (slots_[at].pair == pair) return &slots_[at];
    if (slots_[at].pair == kNone) return nullptr;
  }
}

BpeEncoder::BpeEncoder(const BpeModel& model) : model_(model), cache_(kCacheSlots) {}

void BpeEncoder::encode(std::string_view piece, std::vector<int32_t>& out) {
  Cached* cached = nullptr;
  if (piece.size() <= Cached::kMaxBytes) {
    cached = &cache_[hash_bytes(piece) & (kCacheSlots - 1)];
    if (cached->num_bytes == piece.size() && std::memcmp(cached->bytes, piece.data(), piece.size()) == 0) {
      out.insert(out.end(), cached->ids, cached->ids + cached->num_ids);
      return;
    }
  }
  if (!model_.whole_pieces.empty()) {
    auto whole = model_.whole_pieces.find(piece);
    if (whole != model_.whole_pieces.end()) return out.push_back(whole->second);
  }
  size_t first = out.size();
  merge(piece);
  for (uint32_t at = 0; at != kEnd; at = next_[at]) out.push_back(symbols_[at]);
  size_t num_ids = out.size() - first;
  if (cached && num_ids <= Cached::kMaxIds) {
    cached->num_bytes = static_cast<uint8_t>(piece.size());
    cached->num_ids = static_cast<uint8_t>(num_ids);
    std::memcpy(cached->bytes, piece.data(), piece.size());
    std::copy(out.begin() + static_cast<ptrdiff_t>(first), out.end(), cached->ids);
  }
}

static constexpr auto kLater = [](const auto& a, const auto& b) {
  return a.rank != b.rank ? a.rank > b.rank : a.at > b.at;
};

void BpeEncoder::push(uint32_t at) {
  uint32_t next = next_[at];
  if (next == kEnd) return;
  const MergeTable::Merge* found = model_.merges.find(symbols_[at], symbols_[next]);
  if (!found) return;
  heap_.push_back({found->rank, at, symbols_[at], symbols_[next]});
  std::push_heap(heap_.begin(), heap_.end(), kLater);
}

void BpeEncoder::merge(std::string_view piece) {
  WEFT_CHECK(piece.size() < kEnd, str("tokenizer: one piece of text has ", piece.size(), " bytes"),
             "encode the text in parts of less than 4 GiB");
  auto n = static_cast<uint32_t>(piece.size());
  symbols_.resize(n);
  next_.resize(n);
  previous_.resize(n);
  heap_.clear();
  for (uint32_t i = 0; i < n; ++i) {
    symbols_[i] = model_.byte_ids[static_cast<unsigned char>(piece[i])];
    next_[i] = i + 1 < n ? i + 1 : kEnd;
    previous_[i] = i > 0 ? i - 1 : kEnd;
  }
  for (uint32_t i = 0; i < n; ++i) push(i);
  while (!heap_.empty()) {
    same_rank_.clear();
    uint32_t rank = heap_.front().rank;
    while (!heap_.empty() && heap_.front().rank == rank) {
      std::pop_heap(heap_.begin(), heap_.end(), kLater);
      same_rank_.push_back(heap_.back());
      heap_.pop_back();
    }
    for (const Candidate& c : same_rank_) {
      uint32_t right = symbols_[c.at] == c.left ? next_[c.at] : kEnd;
      if (right == kEnd || symbols_[right] != c.right) continue;  // an earlier merge took one of the two
      symbols_[c.at] = model_.merges.find(c.left, c.right)->id;
      symbols_[right] = -1;
      next_[c.at] = next_[right];
      if (next_[right] != kEnd) previous_[next_[right]] = c.at;
      push(c.at);
      if (previous_[c.at] != kEnd) push(previous_[c.at]);
    }
  }
}

}  // namespace weft::data
