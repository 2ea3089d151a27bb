// What the tests of mixing and decoding share: rows of two documents in any order, and what keys get of the weights, in plain loops.
#pragma once

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <string>
#include <vector>

#include "src/nn/mixing/chosen_keys.h"
#include "tests/support/random.h"
#include "weft/nn/tokens.h"

namespace weft::mixing_test {

using Ints = std::vector<int32_t>;

inline constexpr int64_t kBatch = 2, kTokens = 13;

// Two documents per row, of other lengths in each, the last two tokens of row 1 padding.
inline Ints documents_of_rows() {
  Ints documents;
  for (int64_t b = 0; b < kBatch; ++b)
    for (int64_t t = 0; t < kTokens; ++t) documents.push_back(b == 1 && t >= 11 ? -1 : t < 4 + 3 * b ? 0 : 1);
  return documents;
}

// Which token of its row stands at each place: in order, or shuffled.
inline Ints order_of_rows(bool is_shuffled) {
  Ints order;
  for (int64_t b = 0; b < kBatch; ++b) {
    Ints row;
    for (int32_t t = 0; t < kTokens; ++t) row.push_back(t);
    for (size_t i = row.size(); i > 1 && is_shuffled; --i)
      std::swap(row[i - 1], row[Rng(5 + static_cast<uint64_t>(b)).below(i, i)]);
    order.insert(order.end(), row.begin(), row.end());
  }
  return order;
}

struct Layout {
  TokenData data;
  Ints order;  // token of the row at each place

  Layout(bool is_shuffled, bool has_documents) : order(order_of_rows(is_shuffled)) {
    const Ints of_row = documents_of_rows();
    Ints positions, documents;
    for (size_t i = 0; i < order.size(); ++i) {
      const size_t row = i / kTokens * kTokens;
      positions.push_back(order[i] + 3);
      documents.push_back(of_row[row + static_cast<size_t>(order[i])]);
    }
    data.positions = Tensor::from(std::span<const int32_t>(positions), {kBatch, kTokens});
    if (has_documents) data.documents = Tensor::from(std::span<const int32_t>(documents), {kBatch, kTokens});
  }
  // Numbers per token by position -> as the tokens stand here.
  std::vector<double> here(const std::vector<double>& by_position) const {
    const size_t each = by_position.size() / order.size();
    std::vector<double> out;
    for (size_t i = 0; i < order.size(); ++i)
      for (size_t c = 0; c < each; ++c)
        out.push_back(by_position[(i / kTokens * kTokens + static_cast<size_t>(order[i])) * each + c]);
    return out;
  }
};

inline Tensor tensor(const std::vector<double>& numbers, const Shape& shape) {
  return Tensor::from(std::span<const double>(numbers), shape);
}

inline void expect_near(const std::vector<double>& got, const std::vector<double>& expected, double bound,
                        const std::string& what) {
  ASSERT_EQ(got.size(), expected.size()) << what;
  for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], expected[i], bound) << what << ", number " << i;
}

// What each key gets of the weights, and of whom: one whole matrix per head.
inline std::vector<double> masses(const Tensor& q, const Tensor& k, const TokenData& data, int64_t window,
                                  bool is_sigmoid) {
  const int64_t B = q.size(0), T = q.size(1), H = q.size(2), K = q.size(3), G = k.size(2);
  const auto qs = q.to_vector<double>(), ks = k.to_vector<double>();
  const Ints positions = data.positions.to_vector<int32_t>();
  const Ints documents = data.documents.defined() ? data.documents.to_vector<int32_t>() : Ints(positions.size(), 0);
  std::vector<double> mass(static_cast<size_t>(B * T * H), 0.0);
  for (int64_t b = 0; b < B; ++b)
    for (int64_t h = 0; h < H; ++h)
      for (int64_t i = 0; i < T; ++i) {
        std::vector<double> row(static_cast<size_t>(T), 0.0);
        double total = 0;
        const auto qi = static_cast<size_t>(b * T + i);
        for (int64_t j = 0; j < T; ++j) {
          const auto kj = static_cast<size_t>(b * T + j);
          const int32_t distance = positions[qi] - positions[kj];
          if (distance < 0 || (window > 0 && distance >= window)) continue;
          if (documents[qi] != documents[kj] || documents[qi] < 0) continue;
          double score = 0;
          for (int64_t c = 0; c < K; ++c)
            score += qs[(qi * static_cast<size_t>(H) + static_cast<size_t>(h)) * static_cast<size_t>(K) +
                        static_cast<size_t>(c)] *
                     ks[(kj * static_cast<size_t>(G) + static_cast<size_t>(h / (H / G))) * static_cast<size_t>(K) +
                        static_cast<size_t>(c)];
          score /= std::sqrt(static_cast<double>(K));
          total += row[static_cast<size_t>(j)] = is_sigmoid ? 1 / (1 + std::exp(-score)) : std::exp(score);
        }
        for (int64_t j = 0; j < T && total > 0; ++j)
          mass[static_cast<size_t>((b * T + j) * H + h)] += row[static_cast<size_t>(j)] / total;
      }
  return mass;
}

inline std::vector<double> doubles(const Tensor& t) { return cast(Var(t), kF64).value().to_vector<double>(); }

// Attention of heads [B, T, H, K] to those tokens whose position leaves 1 when divided by 3, from the token behind on: {out, lse}. A token that
// sees none has -99 as lse.
inline std::array<Var, 2> attend_to_every_third(Tokens& tokens, const Var& q_BTHK) {
  const int64_t B = q_BTHK.size(0), T = q_BTHK.size(1);
  ChosenRows rows(static_cast<size_t>(B));
  for (int64_t i = 0; i < B * T; ++i) {
    const auto at = static_cast<size_t>(i);
    const int32_t position = tokens.cpu_positions()[at];
    if (tokens.is_padding(i) || position % 3 != 1) continue;
    const int32_t document = tokens.has_padding() ? tokens.cpu_documents()[at] : 0;
    rows[static_cast<size_t>(i / T)].push_back({static_cast<int32_t>(i), position + 1, document});
  }
  Var flat = reshape(q_BTHK, {B * T, q_BTHK.size(2), q_BTHK.size(3)});
  const KeySet keys = chosen_keys(flat * 0.7, flat * 1.3, rows, tokens.has_padding());
  auto [out, lse] = tokens.attend_part(tokens.queries(q_BTHK), keys, {});
  return {out, maximum(lse, Var(Tensor::full({}, -99, lse.dtype(), lse.device())))};
}

}  // namespace weft::mixing_test
