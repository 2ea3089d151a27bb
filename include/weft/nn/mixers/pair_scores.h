// Mixers whose score is not an inner product of a query and a key. They compute scores for some queries at a time, with plain operations.
// They are as slow as attention that stores the T x T matrix. Their memory grows with T, except where noted.
#pragma once

#include "weft/nn/mixer.h"

namespace weft {

// Token-aware phase (TAPA, 2509.12635): scores A cos(2 pi |i - j|^power phi). A is the inner product of one part of the channels of query
// and key, phi that of the other part. There is no rotation and no further parameter.
struct TapaOptions {
  int64_t heads = 1, kv_heads = 0, head_dim = 0;
  double amplitude_share = 0.5;  // of the channels of a head
  double power = 0.1;
  int64_t window = 0;
  std::unique_ptr<Mixer> operator()(const MixerArgs& args, Rng rng) const;
};

// A small network of query and key makes the score (Neural Attention, 2502.17206). Weights are shared by the heads.
struct NeuralOptions {
  int64_t heads = 1, kv_heads = 0, head_dim = 0;
  int64_t hidden = 0;  // p: width of the first layer, the second has p / 2; 0: head_dim / 32, at least 2
  int64_t window = 0;
  std::unique_ptr<Mixer> operator()(const MixerArgs& args, Rng rng) const;
};

// Queries, keys and values go through a depthwise convolution over time. Positions are relative, as in Transformer-XL (RCMHA, 2308.03429).
struct RcmhaOptions {
  int64_t heads = 1, kv_heads = 0, head_dim = 0;
  int64_t kernel = 3;  // tokens, this one included
  int64_t window = 0;
  std::unique_ptr<Mixer> operator()(const MixerArgs& args, Rng rng) const;
};

// A learned bias per head and bucket of distances, in place of rotation (T5, 1910.10683). Buckets of larger distances are wider.
struct RelativeBiasOptions {
  int64_t heads = 1, kv_heads = 0, head_dim = 0;
  int64_t buckets = 32;        // half of them hold one distance each
  int64_t max_distance = 128;  // all larger distances are in the last bucket
  int64_t window = 0;
  std::unique_ptr<Mixer> operator()(const MixerArgs& args, Rng rng) const;
};

// Logits and weights are convolved over neighbouring queries and keys, and mixed over heads (Multi-Token Attention, 2504.00927).
// Memory grows with T^2.
struct MultiTokenOptions {
  int64_t heads = 1, head_dim = 0;
  int64_t query_kernel = 6, key_kernel = 11;  // tokens; key_kernel is odd
  bool has_weight_conv = false;               // a second convolution, of the weights
  bool mixes_scores = false;                  // over heads, before softmax
  int64_t group = 0;                          // heads whose weights mix; 0: all; 1: none
  bool has_gate = true;                       // after the norm per head
  int64_t window = 0;
  std::unique_ptr<Mixer> operator()(const MixerArgs& args, Rng rng) const;
};

// Local Linear Attention (2510.01450): the value at the query of a line fitted to the values around it, by ridge regression of values on keys
// under the weights exp(s). Queries and keys are RMS-normed; the ridge is learned per head and starts at 1. Each query solves a system [K, K]
// by conjugate gradients, which cost two passes over its keys per step, in up to about K steps.
struct LocalLinearOptions {
  int64_t heads = 1, kv_heads = 0, head_dim = 0;
  std::unique_ptr<Mixer> operator()(const MixerArgs& args, Rng rng) const;
};

using PairScoreList =
    OptionsList<TapaOptions, NeuralOptions, RcmhaOptions, RelativeBiasOptions, MultiTokenOptions, LocalLinearOptions>;

}  // namespace weft
