// Mixers in which softmax attention and a recurrence work together within one layer.
#pragma once

#include "weft/nn/mixers/softmax.h"

namespace weft {

// Hymba (2411.13676): attention heads beside as many recurrent heads of the same width, each branch with a norm of its own, and the mean of the
// two projected. The recurrence has a decay per head and token, and keys and queries that all heads share (Mamba-2, 2405.21060), where the
// paper has a Mamba-1 of 16 states. Meta tokens stand before every document and are seen through every window. What they give a layer
// does not depend on the text, so each layer learns it by itself: keys and values, not rotated, and the state before the first token.
struct HymbaOptions {
  int64_t heads = 1, kv_heads = 0, head_dim = 0;
  int64_t window = 0;   // of attention; 0: all earlier tokens
  int64_t state = 0;    // width of keys and queries of the recurrence; 0: head_dim
  int64_t kernel = 4;   // tokens of the convolution before the recurrence
  int64_t meta = 0;     // meta tokens
  int64_t sharing = 1;  // so many layers in a row with this mixer use the keys and values of the first
  std::unique_ptr<Mixer> operator()(const MixerArgs& args, Rng rng) const;
};

// RAT (2507.04416): a gated mean of values and keys runs within chunks of tokens, and attention reads its last value of every earlier chunk and
// the running one. A chunk of 1 is attention, one as long as the text a recurrence. Rotation is by the number of the chunk. Decoding
// keeps the keys of last tokens of chunks alone, and no others are sent to other ranks.
struct RatOptions {
  int64_t heads = 1, head_dim = 0;
  int64_t chunk = 16;
  int64_t groups = 0;  // of queries and of keys, each for several heads; 0: 2, or 1 if heads are odd
  std::unique_ptr<Mixer> operator()(const MixerArgs& args, Rng rng) const;
};

// NAtS (2502.13251): per head each token is global (seen by all that follow), local (seen until the next global one) or sliding (seen through a
// window). The types are chosen by a linear map, with Gumbel noise in training. Attention goes over all tokens, of which those that are
// not seen have no weight, and decoding keeps the keys of all.
struct NatsOptions {
  int64_t heads = 1, kv_heads = 0, head_dim = 0;
  int64_t window = 64;
  // Of the softmax whose gradient the choice has, at the first step and at the last; between them it falls by the same factor each step.
  double temperature = 1, end_temperature = 0.3;
  double global_bias = 1;     // what the logit of global starts with
  double global_loss = 1e-3;  // weight of the mean share of global tokens in the loss
  std::unique_ptr<Mixer> operator()(const MixerArgs& args, Rng rng) const;
};

// NAtS-L (2602.03681): per head each chunk of tokens is kept as keys and values of softmax attention, which does not rotate, or in the state of
// a Gated DeltaNet. Both read the same q, k and v. The recurrence runs chunk by chunk, and every rank runs all of it; decoding keeps two
// states, and the keys of all chunks.
struct NatsLinearOptions {
  int64_t heads = 1;          // of the state
  int64_t head_dim = 0;       // of its keys; 0: 3 dim / (4 heads)
  int64_t value_dim = 0;      // 0: 2 head_dim
  int64_t softmax_heads = 0;  // into which the same q, k and v are cut; 0: twice heads, or heads where widths are odd
  int64_t chunk = 64;         // what is chosen as a whole: not a matter of speed
  int64_t kernel = 4;         // tokens that the short convolutions span
  std::unique_ptr<Mixer> operator()(const MixerArgs& args, Rng rng) const;
};

// HySparse (2602.03560): the first of every sparse + 1 layers attends to all keys. Those behind it attend to the blocks of its keys and values
// in which it found the largest weights, and through a window to keys and values of their own, each with a gate. So only the full layers
// keep keys of all tokens when a text is decoded. sparse 0: every layer chooses blocks by attention of its own.
struct HySparseOptions {
  int64_t heads = 1, kv_heads = 0, head_dim = 0;
  int64_t sparse = 3;               // layers that use a full one's keys
  int64_t block = 64, blocks = 16;  // tokens of a block, and how many a query reads
  int64_t window = 128;
  std::unique_ptr<Mixer> operator()(const MixerArgs& args, Rng rng) const;
};

// Flux Attention (2604.07394): a router reads the mean of the first `prompt` tokens of a document and decides for the whole layer whether the
// document's tokens see all earlier ones or those in a window. Trained on a frozen model: projections are named as softmax attention's. The
// cache of a decoding keeps the keys of all tokens, since a router may choose them; what is saved is work.
struct FluxOptions {
  int64_t heads = 1, kv_heads = 0, head_dim = 0;
  int64_t window = 128;
  int64_t prompt = 64;                      // at most the window
  int64_t hidden = 64;                      // of the router
  double full_loss = 1, full_target = 0.5;  // weight of (share of documents that see all - target)^2
  std::unique_ptr<Mixer> operator()(const MixerArgs& args, Rng rng) const;
};

// What LayerBoost (2604.22050) puts in place of softmax attention, with projections of the same names. linear: linear attention, elu + 1 of
// queries and keys, over a window. identity: each token's own value; without queries and keys.
enum class ReplacementKind { linear, identity };
struct ReplacementOptions {
  ReplacementKind kind = ReplacementKind::linear;
  int64_t heads = 1, kv_heads = 0, head_dim = 0;
  int64_t window = 64;  // of linear
  MixerPosition position =
      MixerPosition::model;  // of linear: queries and keys are rotated as the model's, or not at all
  std::unique_ptr<Mixer> operator()(const MixerArgs& args, Rng rng) const;
};

using HybridList = OptionsList<HymbaOptions, RatOptions, NatsOptions, NatsLinearOptions, HySparseOptions, FluxOptions,
                               ReplacementOptions>;

}  // namespace weft
