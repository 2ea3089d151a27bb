// The order in which items add to a gradient that they share: it is that of the key blocks, so every number of threads gives the same bits.
#pragma once

#include <atomic>
#include <thread>

#include "weft/core/tensor.h"

namespace weft::ops::core {
namespace {

// One block of queries of one head as the strips of an item see it; `next` is the block after it that they see.
struct Place {
  int64_t b, row, head, block, q0, next;
  int queries;
  bool is_packed;
};

// For each (row, head, block of queries): how many key blocks have been added to dQ, counting skipped ones.
class Turns {
 public:
  Turns(int64_t batch, int64_t heads, int64_t blocks)
      : heads_(heads),
        blocks_(blocks),
        memory_(Tensor::zeros({batch, heads, blocks > 0 ? blocks : 1}, kI32, Device::cpu())),
        next_(memory_.template mutable_data<int32_t>()) {}

  // Waits until key block `before` - 1 is in. Items start in order, so the awaited one runs or is done.
  void wait(int64_t b, int64_t head, int64_t block, int64_t before) {
    std::atomic_ref<int32_t> turn(at(b, head, block));
    for (int spins = 0; turn.load(std::memory_order_acquire) < before; ++spins) {
      if (is_abandoned_.load(std::memory_order_relaxed)) return;
      if (spins > 64) std::this_thread::yield();
    }
  }
  void done(int64_t b, int64_t head, int64_t block, int64_t key_block) {
    std::atomic_ref<int32_t>(at(b, head, block)).store(static_cast<int32_t>(key_block + 1), std::memory_order_release);
  }
  void abandon() { is_abandoned_.store(true, std::memory_order_relaxed); }

 private:
  int32_t& at(int64_t b, int64_t head, int64_t block) { return next_[(b * heads_ + head) * blocks_ + block]; }

  int64_t heads_, blocks_;
  Tensor memory_;
  int32_t* next_;
  std::atomic<bool> is_abandoned_{false};
};

}  // namespace
}  // namespace weft::ops::core
