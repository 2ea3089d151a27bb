// Rows whose tokens are dealt to ranks in blocks of any order, with documents and padding.
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "weft/core/rng.h"
#include "weft/nn/token_data.h"

namespace weft::mixing_test {

using Ints = std::vector<int32_t>;

// B rows, whose positions are dealt to ranks in blocks; of every rank the tokens [B, T].
struct Rows {
  int64_t batch = 1, of_rank = 0;
  Ints documents = {};  // [B, P T] by position; -1: padding
  std::vector<Ints> positions = {};

  int ranks() const { return static_cast<int>(positions.size()); }
  int64_t of_row() const { return ranks() * of_rank; }
  int64_t at(int rank, int64_t i) const {  // token i of a rank, among those of all rows
    return i / of_rank * of_row() + positions[static_cast<size_t>(rank)][static_cast<size_t>(i)];
  }
  TokenData data(int rank) const {
    Ints of;
    for (int64_t i = 0; i < batch * of_rank; ++i) of.push_back(documents[static_cast<size_t>(at(rank, i))]);
    return {.positions = Tensor::from(std::span<const int32_t>(positions[static_cast<size_t>(rank)]), {batch, of_rank}),
            .documents = Tensor::from(std::span<const int32_t>(of), {batch, of_rank})};
  }
};

inline Ints random_documents(const Rng& rng, int64_t tokens, uint64_t& draw) {
  Ints documents;
  const auto mean = static_cast<uint64_t>(1 + tokens / 3);
  const int64_t padding = rng.below(2, draw++) == 0 ? 0 : static_cast<int64_t>(rng.below(mean, draw++));
  for (int32_t document = 0; std::ssize(documents) < tokens; ++document) {
    const bool is_padding = rng.below(8, draw++) == 0;  // between documents too
    documents.resize(documents.size() + 1 + rng.below(mean, draw++), is_padding ? -1 : document);
  }
  documents.resize(static_cast<size_t>(tokens));
  std::fill(documents.end() - padding, documents.end(), -1);
  return documents;
}

// Blocks are dealt at random, as a balanced layout may; in each row in another way.
inline Rows random_rows(uint64_t seed, int64_t longest_block) {
  const Rng rng(seed);
  uint64_t draw = 0;
  const int ranks = 2 + static_cast<int>(rng.below(3, draw++));
  const int64_t block = 1 + static_cast<int64_t>(rng.below(static_cast<uint64_t>(longest_block), draw++)),
                blocks = 1 + static_cast<int64_t>(rng.below(12, draw++));
  Rows rows{.batch = 1 + static_cast<int64_t>(rng.below(3, draw++)), .of_rank = blocks * block};
  rows.positions.resize(static_cast<size_t>(ranks));
  for (int64_t b = 0; b < rows.batch; ++b) {
    Ints order;
    for (int64_t i = 0; i < ranks * blocks; ++i) order.push_back(static_cast<int32_t>(i));
    for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[rng.below(i, draw++)]);
    for (int r = 0; r < ranks; ++r) {
      const auto begin = order.begin() + r * blocks;
      std::sort(begin, begin + blocks);
      for (auto of = begin; of != begin + blocks; ++of)
        for (int64_t i = 0; i < block; ++i)
          rows.positions[static_cast<size_t>(r)].push_back(static_cast<int32_t>(*of * block + i));
    }
    const Ints documents = random_documents(rng, rows.of_row(), draw);
    rows.documents.insert(rows.documents.end(), documents.begin(), documents.end());
  }
  return rows;
}

}  // namespace weft::mixing_test
