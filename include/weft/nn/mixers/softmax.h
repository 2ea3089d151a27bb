// Softmax attention and its options.
#pragma once

#include "weft/nn/mixer.h"

namespace weft {

// MHA (kv_heads = heads), GQA, MQA (kv_heads = 1).
struct SoftmaxOptions {
  int64_t heads = 1;
  int64_t kv_heads = 0;   // 0: heads; heads must be a multiple
  int64_t head_dim = 0;   // 0: dim / heads
  bool qk_norm = false;   // RMSNorm over each query and key head before rotation, gains shared by the heads
  int64_t window = 0;     // > 0: a token sees the last `window` tokens, itself included
  double softcap = 0;     // > 0: scores become cap * tanh(score / cap)
  bool has_bias = false;  // on q, k, v and out
  double dropout = 0;     // of the weights

  std::unique_ptr<Mixer> operator()(const MixerArgs& args, Rng rng) const;
};

}  // namespace weft
