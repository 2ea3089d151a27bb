// Mixers whose heads are experts that a router chooses per token.
#pragma once

#include "weft/nn/mixer.h"

namespace weft {

// Mixture of attention heads (MoA, 2210.05144). Each expert is a head with its own query and output projection. All experts share one key
// and one value head. Projections begin uniform as published (Xavier), whatever the model's std and out_std are.
struct MoaOptions {
  int64_t experts = 1, active = 1;
  int64_t head_dim = 0;  // 0: dim / active
  bool has_noise = false;
  bool is_detached = true;  // weights are p / (sum of the chosen p); no gradient goes through the sum, as published
  double balance_loss = 0.01, z_loss = 0.001;
  bool is_dense = false;  // computes every expert for every token, which saves nothing but is exact to the bit
  std::unique_ptr<Mixer> operator()(const MixerArgs& args, Rng rng) const;
};

// Attention side of UMoE (2505.07260). Attention computes weighted sums of the tokens' states, and an expert reads each sum. Experts are
// small feed-forward networks. A shared expert reads one more sum. The feed-forward side (FfnKind::umoe) uses the same experts.
// At first the routers of both sides are uniform in +-1 / sqrt(dim), as released. All else is N(0, std) of the model, and what writes to
// the residual stream N(0, out_std).
struct UmoeOptions {
  int64_t experts = 1, active = 1;
  int64_t head_dim = 0;     // of queries and keys; 0: dim / 4
  int64_t hidden = 0;       // of an expert; 0: dim / 4
  int64_t query_rank = 16;  // of what an expert adds to the common query
  double balance_loss = 0.001;
  bool is_dense = false;
  std::unique_ptr<Mixer> operator()(const MixerArgs& args, Rng rng) const;
};

using ExpertList = OptionsList<MoaOptions, UmoeOptions>;

}  // namespace weft
