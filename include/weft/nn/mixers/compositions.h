// Mixers that call the softmax core in other ways than once on projected queries, keys and values.
#pragma once

#include "weft/nn/mixer.h"

namespace weft {

// Multi-head latent attention (DeepSeek-V2, 2405.04434): keys and values are made from one narrow vector per token, which is all that
// decoding keeps, and one rotated key that the heads share.
struct MlaOptions {
  int64_t heads = 1;
  int64_t head_dim = 0;  // dn: unrotated width of queries and keys, and width of values; 0: dim / heads
  int64_t rope_dim = 0;  // dr: rotated width; 0: head_dim / 2
  int64_t kv_rank = 0;   // dc; 0: 2 head_dim
  int64_t q_rank = 0;    // dq; 0: queries are made from x itself
  std::unique_ptr<Mixer> operator()(const MixerArgs& args, Rng rng) const;
};

// Queries and keys are themselves outputs of causal attention (Nexus, 2512.03377), `order` - 1 times; no parameters more.
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

// Modern Hopfield layer (2008.02217): queries take `steps` updates xi <- softmax(beta xi k^T) k before they read the values; beta is
// learned per head.
struct HopfieldOptions {
  int64_t heads = 1, kv_heads = 0, head_dim = 0;
  int64_t steps = 1;
  std::unique_ptr<Mixer> operator()(const MixerArgs& args, Rng rng) const;
};

// Attention without some of its projections (2403.01643): optimised has no value projection, efficient no key projection either, super
// has neither but mixes values over positions with a learned lower triangle, which fixes the longest sequence to the model's context
// and takes O(T^2) memory. Heads are dim / heads wide.
enum class SimplifiedKind { optimised, efficient, super };
struct SimplifiedOptions {
  SimplifiedKind kind = SimplifiedKind::optimised;
  int64_t heads = 1;
  std::unique_ptr<Mixer> operator()(const MixerArgs& args, Rng rng) const;
};

// Controlled variants of "Deconstructing Attention" (2510.11602): none mixes no tokens, key_only has scores that do not read the query,
// static_embedding makes queries and keys from the input embedding of the tokens, random_embedding and fixed_text from a sequence that is
// the same for all rows and runs through the model's layers beside them, read at positions within the document. Decoding runs all of it
// for every step.
enum class DeconstructedKind { none, key_only, static_embedding, random_embedding, fixed_text };
struct DeconstructedOptions {
  DeconstructedKind kind = DeconstructedKind::none;
  int64_t heads = 1;
  std::unique_ptr<Mixer> operator()(const MixerArgs& args, Rng rng) const;
};

// Normalised attention (NAP, 2005.09561): weights gain (s - mean) / std + bias over the keys that a query sees, divided by the square
// root of their number. In linear sums of the core, so that nothing of size T^2 is kept.
struct NapOptions {
  int64_t heads = 1, kv_heads = 0, head_dim = 0, window = 0;
  bool divides_by_root = true;
  std::unique_ptr<Mixer> operator()(const MixerArgs& args, Rng rng) const;
};

// Dual attention (2405.16727): sensory heads, and relational heads that return inner products of the query with its keys, and a symbol
// of each key. Heads are dim / (heads + relational_heads) wide.
struct DualOptions {
  int64_t heads = 1, relational_heads = 1;
  int64_t relations = 0;  // 0: relational_heads
  int64_t symbols = 16;   // in the library that tokens attend to
  std::unique_ptr<Mixer> operator()(const MixerArgs& args, Rng rng) const;
};

}  // namespace weft
