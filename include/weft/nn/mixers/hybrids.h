// Mixers in which softmax attention and a recurrence work together within one layer.
#pragma once

#include "weft/nn/mixer.h"

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
  int64_t sharing = 1;  // so many layers in a row, from layer 0 on, use the keys and values of the first of them
  std::unique_ptr<Mixer> operator()(const MixerArgs& args, Rng rng) const;
};

// RAT (2507.04416): a gated mean of values and keys runs within chunks of tokens, and attention reads its last value of every earlier chunk and
// the running one. A chunk of 1 is attention, one as long as the text a recurrence. Rotation is by the number of the chunk. Attention goes
// over all tokens here, of which those inside of chunks have no weight.
struct RatOptions {
  int64_t heads = 1, head_dim = 0;
  int64_t chunk = 16;
  int64_t groups = 0;  // of queries and of keys, each for several heads; 0: 2, or 1 if heads are odd
  std::unique_ptr<Mixer> operator()(const MixerArgs& args, Rng rng) const;
};

using HybridList = OptionsList<HymbaOptions, RatOptions>;

}  // namespace weft
