// Memory of one decoding. Every attend, shift and scan of a forward owns one slot, in the order of the calls.
#pragma once

#include <vector>

#include "weft/nn/tokens.h"

namespace weft {

class Cache {
 public:
  Cache(int64_t batch, int64_t max_tokens);

  struct Slot {
    Tensor a, b, c;  // keys, values and biases of keys; or the tail of a shift; or the running sum
  };
  Slot& slot(size_t index);
  int64_t batch() const { return batch_; }
  int64_t max_tokens() const { return max_tokens_; }
  int64_t num_tokens() const { return num_tokens_; }
  void check_room(int64_t more) const;
  void advance(int64_t count) { num_tokens_ += count; }

  // Writes the new tokens' positions and documents behind the old ones and returns views of all.
  ops::AttentionTokens keys(const ops::AttentionTokens& fresh);
  // Appends [B, T, ...] to `store` [B, max_tokens, ...] and returns a view of all tokens so far.
  Tensor append(Tensor& store, const Tensor& fresh) const;

 private:
  int64_t batch_, max_tokens_, num_tokens_ = 0;
  Tensor positions_, documents_;
  std::vector<Slot> slots_;
};

}  // namespace weft
