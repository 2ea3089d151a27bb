// Rows of one or two documents, and reports by name, for tests of what mixers show of their attention.
#pragma once

#include <algorithm>
#include <map>
#include <string>

#include "weft/nn/tokens.h"

namespace weft::observed_test {

inline constexpr int64_t kTokens = 12;
inline constexpr int64_t kFirst = 5;  // tokens of the first of two documents

inline TokenData data_of(bool has_documents, int64_t num_tokens = kTokens) {
  TokenData data = plain_tokens(1, num_tokens);
  if (!has_documents) return data;
  std::vector<int32_t> documents, positions;
  for (int64_t t = 0; t < num_tokens; ++t) {
    documents.push_back(t < kFirst ? 0 : 1);
    positions.push_back(static_cast<int32_t>(t < kFirst ? t : t - kFirst));
  }
  data.documents = Tensor::from(std::span<const int32_t>(documents), {1, num_tokens});
  data.document_positions = Tensor::from(std::span<const int32_t>(positions), {1, num_tokens});
  return data;
}

// The first token of the document of token t.
inline int64_t start_of(bool has_documents, int64_t t) { return has_documents && t >= kFirst ? kFirst : 0; }

using Values = std::map<std::string, double>;

// Calls that report one name: their mean, or their largest.
inline Values values_of(const std::vector<Tokens::Report>& reports) {
  std::map<std::string, Tokens::Report> all;
  for (const Tokens::Report& r : reports) {
    const auto [entry, is_new] = all.emplace(r.name, r);
    if (is_new) continue;
    entry->second.sum = r.is_max ? std::max(entry->second.sum, r.sum) : entry->second.sum + r.sum;
    entry->second.count += r.count;
  }
  Values values;
  for (const auto& [name, r] : all) values[name] = r.is_max ? r.sum : r.sum / r.count;
  return values;
}

}  // namespace weft::observed_test
