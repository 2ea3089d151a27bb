// Mixers that call the softmax core in other ways than once on projected queries, keys and values.
#pragma once

#include "weft/nn/mixer.h"

namespace weft {

// Multi-head latent attention (DeepSeek-V2, 2405.04434). Keys and values are made from one narrow vector per token; all heads also share one
// rotated key. Decoding keeps only these two.
struct MlaOptions {
  int64_t heads = 1;
  int64_t head_dim = 0;  // dn: unrotated width of queries and keys, and width of values; 0: dim / heads
  int64_t rope_dim = 0;  // dr: rotated width; 0: head_dim / 2
  int64_t kv_rank = 0;   // dc; 0: 2 head_dim
  int64_t q_rank = 0;    // dq; 0: queries are made from x itself
  std::unique_ptr<Mixer> operator()(const MixerArgs& args, Rng rng) const;
};

// Queries and keys are outputs of causal attention themselves (Nexus, 2512.03377), `order` - 1 times, without further parameters.
struct NexusOptions {
  int64_t heads = 1, kv_heads = 0, head_dim = 0;
  int64_t order = 2;  // 1: ordinary attention
  bool has_values_of_layer =
      false;  // inner calls read the layer's values instead of their own stream; kv_heads = heads
  // RMSNorm of queries and keys behind their projections, and once more, with the same gains, before the outer call of order 2 or more.
  // What an inner call makes is not normed before the next inner call.
  bool has_qk_norm = false;
  std::unique_ptr<Mixer> operator()(const MixerArgs& args, Rng rng) const;
};

// Modern Hopfield layer (2008.02217). Queries take `steps` updates xi = softmax(beta xi k^T) k before they read the values. Each head learns
// its beta.
struct HopfieldOptions {
  int64_t heads = 1, kv_heads = 0, head_dim = 0;
  int64_t steps = 1;
  std::unique_ptr<Mixer> operator()(const MixerArgs& args, Rng rng) const;
};

// Forgetting attention (FoX, 2503.02130). Each head has a gate per token, the sigmoid of a linear map of x. The logs of the gates between
// key and query are added to the score. Gates tell positions apart, so that there is no rotation unless it is asked for.
struct ForgettingOptions {
  int64_t heads = 1, kv_heads = 0, head_dim = 0;
  bool has_rotation = false;
  std::unique_ptr<Mixer> operator()(const MixerArgs& args, Rng rng) const;
};

// Differential attention (2410.05258): a head is the difference of two softmax calls on the halves of its query and key, the second of
// which is weighted by a learned number of the layer. head_dim (0: dim / heads) is the width of both halves together.
struct DifferentialOptions {
  int64_t heads = 1, kv_heads = 0, head_dim = 0;
  std::unique_ptr<Mixer> operator()(const MixerArgs& args, Rng rng) const;
};

// Attention without some of its projections (2403.01643). optimised has no value projection. efficient has no value and no key projection.
// super has neither, and mixes values over positions with a learned lower triangle of the size of the model's context: no sequence can be
// longer, and memory is O(T^2). Heads are dim / heads wide.
enum class SimplifiedKind { optimised, efficient, super };
struct SimplifiedOptions {
  SimplifiedKind kind = SimplifiedKind::optimised;
  int64_t heads = 1;
  std::unique_ptr<Mixer> operator()(const MixerArgs& args, Rng rng) const;
};

// Controlled variants of "Deconstructing Attention" (2510.11602). none: no token sees another. key_only: scores do not read the query.
// static_embedding: queries and keys are made from the input embedding of the tokens. random_embedding and fixed_text: queries and keys are
// made from a sequence that is the same for all rows; the model passes it through its layers too, and it is read at positions within the
// document. Decoding runs the whole sequence for every step.
enum class DeconstructedKind { none, key_only, static_embedding, random_embedding, fixed_text };
struct DeconstructedOptions {
  DeconstructedKind kind = DeconstructedKind::none;
  int64_t heads = 1;
  std::unique_ptr<Mixer> operator()(const MixerArgs& args, Rng rng) const;
};

// Normalised attention (NAP, 2005.09561). Weights are gain (s - mean) / std + bias, with mean and std over the keys that a query sees,
// divided by the square root of their number. The sum normaliser of the core computes it, so that nothing of size T^2 is kept.
struct NapOptions {
  int64_t heads = 1, kv_heads = 0, head_dim = 0, window = 0;
  bool divides_by_root = true;
  std::unique_ptr<Mixer> operator()(const MixerArgs& args, Rng rng) const;
};

// Dual attention (2405.16727). Sensory heads are ordinary attention. Relational heads return inner products of the query with its keys, and a
// symbol of each key. Heads are dim / (heads + relational_heads) wide.
struct DualOptions {
  int64_t heads = 1, relational_heads = 1;
  int64_t relations = 0;  // 0: relational_heads
  int64_t symbols = 16;   // in the library that tokens attend to
  std::unique_ptr<Mixer> operator()(const MixerArgs& args, Rng rng) const;
};

// TLinFormer (2508.20407): `depth` layers with norms and SwiGLU of their own, over windows of tokens. Beside a window's tokens go `rows` rows,
// which begin as the last tokens before the window. The first layer reads the whole history, for the tokens and for the rows; the others only
// the window and the rows. So work in all layers but the first grows with T, and decoding keeps a window for each of them.
struct TlinformerOptions {
  int64_t heads = 1, head_dim = 0;
  int64_t depth = 4;  // layers, 2 or more
  int64_t window = 256, rows = 256;
  int64_t hidden = 0;  // of SwiGLU; 0: as the model's feed-forward network has it by default
  std::unique_ptr<Mixer> operator()(const MixerArgs& args, Rng rng) const;
};

using CompositionList =
    OptionsList<MlaOptions, NexusOptions, HopfieldOptions, ForgettingOptions, DifferentialOptions, SimplifiedOptions,
                DeconstructedOptions, NapOptions, DualOptions, TlinformerOptions>;

}  // namespace weft
