// Mixers whose heads are experts that a router chooses per token.
#pragma once

#include "weft/nn/mixer.h"

namespace weft {

// Mixture of attention heads (MoA, 2210.05144): each expert has its own query and output projection; one key and value head is shared.
struct MoaOptions {
  int64_t experts = 1, active = 1;
  int64_t head_dim = 0;  // 0: dim / active
  bool has_noise = false;
  bool is_detached = true;  // weights p / sum of the chosen p without gradient through the sum, as published
  double balance_loss = 0.01, z_loss = 0.001;
  bool is_dense = false;  // every expert on every token, and most of it thrown away: exact to the bit, saves nothing
  std::unique_ptr<Mixer> operator()(const MixerArgs& args, Rng rng) const;
};

// Attention side of UMoE (2505.07260): attention mixes the tokens' own states, and an expert, a small feed-forward network, reads
// each mixture; a shared expert reads one more. The feed-forward side (FfnKind::umoe) runs the same experts.
struct UmoeOptions {
  int64_t experts = 1, active = 1;
  int64_t head_dim = 0;     // of queries and keys; 0: dim / 4
  int64_t hidden = 0;       // of an expert; 0: dim / 4
  int64_t query_rank = 16;  // of what an expert adds to the common query
  double balance_loss = 0.001;
  bool is_dense = false;
  std::unique_ptr<Mixer> operator()(const MixerArgs& args, Rng rng) const;
};

}  // namespace weft
