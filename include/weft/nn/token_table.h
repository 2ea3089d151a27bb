// The tokens of a forward: their positions, their documents, and the order in which they lie in memory.
// B batch rows, T tokens.
#pragma once

#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "weft/nn/token_data.h"

namespace weft {

class Runs;

class TokenTable {
 public:
  explicit TokenTable(TokenData data);
  ~TokenTable();
  TokenTable(const TokenTable&) = delete;
  TokenTable& operator=(const TokenTable&) = delete;

  int64_t batch() const { return data_.positions.size(0); }
  int64_t num_tokens() const { return data_.positions.size(1); }
  const Tensor& positions() const { return data_.positions; }  // [B, T] i32
  const Tensor& documents() const { return data_.documents; }  // [B, T] i32, or undefined
  const Tensor& document_positions() const;                    // [B, T] i32: what rotary phases read
  // The same on the CPU, row by row; empty without documents. The CPU waits for a GPU at most once, and never if TokenData has the CPU's
  // copies.
  std::span<const int32_t> cpu_positions() const;
  std::span<const int32_t> cpu_documents() const;
  std::span<const int32_t> cpu_document_positions() const;
  int64_t first_row() const { return data_.first_row; }  // global index of batch row 0 in the step
  const ops::AttentionTokens& attention_tokens() const { return attention_tokens_; }  // with plans that layers share

  // The runs in which the tokens stand here. Where the caller said that they are consecutive, nobody need ask: other_order() is null
  // unless some row's tokens stand in another order than that of their positions, document by document.
  const Runs& runs() const;
  const Runs* other_order() const;

  // A token without a document (-1) is padding. It counts for nothing: sum(), report_means() and num_counted() leave it out, and so do
  // losses, statistics, reports and buffers made of them. A layer that sums over tokens in another way must use counted().
  bool has_padding() const { return data_.documents.defined(); }  // may have: with documents given
  Tensor counted() const;                                         // [B, T] bool: false for padding
  // Sums over the tokens here but padding: [B, T, ...] -> [B, ...] or [...].
  Var sum_here(const Var& x, Over over = Over::batch) const;
  bool is_padding(int64_t i) const {  // token i of the B T row by row, read on the CPU
    return has_padding() && cpu_documents()[static_cast<size_t>(i)] < 0;
  }

  // One table per (width, options) and step.
  const ops::RotaryTable& rotary_table(int64_t head_width, const ops::RotaryOptions& options);

 protected:
  TokenData data_;

 private:
  struct Rotary;
  ops::AttentionTokens attention_tokens_;
  mutable std::vector<int32_t> cpu_positions_, cpu_documents_, cpu_document_positions_;  // filled when first asked for
  mutable std::unique_ptr<Runs> runs_;
  std::vector<std::unique_ptr<Rotary>> rotary_;
};

}  // namespace weft
