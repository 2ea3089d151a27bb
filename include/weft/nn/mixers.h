// Token mixers: the exchangeable part of a block that lets tokens see each other.
#pragma once

#include <memory>
#include <optional>

#include "weft/nn/layers.h"
#include "weft/nn/tokens.h"

namespace weft {

class Mixer : public Module {
 public:
  virtual Var forward(const Var& x_BTD, Tokens& tokens) = 0;  // x is normed; [batch, tokens, dim] -> the same
  // Products that training a token costs besides 6 per matrix parameter, forward and backward together, given how many keys a
  // query sees on average: softmax attention 12 * heads * width * keys.
  virtual double flops_per_token(double keys) const = 0;
  virtual double keys_per_query(int64_t context) const = 0;  // mean over a row of `context` tokens, with the mask
};

// Softmax attention: MHA (kv_heads = heads), GQA, MQA (kv_heads = 1).
struct SoftmaxOptions {
  int64_t dim = 0;
  int64_t heads = 1;
  int64_t kv_heads = 0;   // 0: heads; heads must be a multiple
  int64_t head_dim = 0;   // 0: dim / heads
  bool qk_norm = false;   // RMSNorm over each query and key head before rotation, gains shared by the heads
  int64_t window = 0;     // > 0: a token sees the last `window` tokens, itself included
  double softcap = 0;     // > 0: scores become cap * tanh(score / cap)
  bool has_bias = false;  // on q, k, v and out
  double dropout = 0;     // of the weights
  std::optional<ops::RotaryOptions> rotary = ops::RotaryOptions{};  // unset: no rotation
  double norm_eps = 1e-6;                                           // of qk_norm
  double std = 0.02, out_std = 0.02;
};
std::unique_ptr<Mixer> make_softmax(const SoftmaxOptions& options, Rng rng);

// [B, T, heads * width] -> [B, T, heads, width] and back.
Var split_heads(const Var& x, int64_t heads);
Var merge_heads(const Var& x);

}  // namespace weft
