// Heads for tokens and back (DeepSpeed-Ulysses, 2309.14509): each rank of a group has some tokens of all heads, or all tokens of the group of
// some heads. U ranks of the group, H query heads, G key/value heads; rank u takes the query heads u H/U .. (u + 1) H/U - 1.
#pragma once

#include "distributed/context/call.h"
#include "distributed/context/travel.h"

namespace weft::dist {

class HeadExchange {
 public:
  // The group is ranks first .. first + count - 1 of `comm`, and `count` divides the heads. A key/value head that several ranks read goes to
  // each of them.
  HeadExchange(Communicator& comm, int first, int count, int64_t heads, int64_t kv_heads);

  int64_t heads_each() const { return heads_ / count_; }
  bool has_copies() const { return keys_.has_copies; }
  // The same call over the group's tokens: one exchange.
  Call call(const Call& call) const;
  // [B, U n, H/U, ...] -> [B, n, H, ...], undefined ones stay so. Of gradients of keys: summed over the ranks that had the head.
  void to_tokens(std::vector<Tensor*> of_queries, std::vector<Tensor*> of_keys = {}) const;

 private:
  // Which heads go to each rank of the group.
  struct Deal {
    std::vector<std::vector<int64_t>> heads;
    int64_t total = 0;
    bool has_copies = false;
  };
  const Deal& deal_of(const Tensor& x) const { return x.size(2) == heads_ ? queries_ : keys_; }
  Tensor spread(const Tensor& x, const Deal& deal) const;            // [B, n, H, ...] -> [U, B, n, h, ...]
  Tensor collect(const Tensor& x, const Deal& deal) const;           // [U, B, n, h, ...] -> [B, n, H, ...]
  std::vector<Tensor> swap(const std::vector<Tensor>& parts) const;  // part u goes to rank u

  Communicator& comm_;
  int first_, count_;
  int64_t heads_;
  Deal queries_, keys_;
};

}  // namespace weft::dist
