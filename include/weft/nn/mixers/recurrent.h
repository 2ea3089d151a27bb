// Mixers without scores of pairs: a state of constant size is carried along the tokens, through Tokens::recur() or Tokens::decay_scan().
// Work grows with the length, not with its square, and decoding keeps no keys. Defaults are the papers' (0: filled in by the mixer); how many
// heads there are is the caller's choice, and with it the state's size. dim is the model's width.
// kernel: tokens that the short convolutions behind the projections of queries, keys and values span, this one included; 0: none.
#pragma once

#include "weft/nn/mixer.h"

namespace weft {

// Gated linear attention (GLA, 2312.06635). Keys and queries are dim / (2 heads) wide, values dim / heads. Each channel of the keys has a
// decay per token, sigmoid(low-rank map of x)^(1/16).
struct GlaOptions {
  int64_t heads = 1;
  int64_t gate_rank = 16;
  int64_t kernel = 0;       // silu behind it, as in DeltaNet
  double clamp_min = -1e4;  // logs of decays below it are raised to it; at -1e4 a decay is 0
  std::unique_ptr<Mixer> operator()(const MixerArgs& args, Rng rng) const;
};

// Delta rule: what the state returns for a key is replaced rather than added to. none: DeltaNet (2406.06484). head: Gated DeltaNet
// (2412.06464), with a decay per head and token, and a gate. channel: Kimi Delta Attention (2510.26692), with a decay per channel of the keys
// and a low-rank gate.
enum class DeltaDecay { none, head, channel };
struct DeltaOptions {
  DeltaDecay decay = DeltaDecay::none;
  int64_t heads = 1;                      // of values
  int64_t key_heads = 0;                  // divides heads; 0: heads
  int64_t head_dim = 0;                   // of keys; 0: dim / heads, with a decay per head 3 dim / (4 heads)
  int64_t value_dim = 0;                  // of a head; 0: head_dim, with a decay per head 2 head_dim
  int64_t kernel = 4;                     // 0: none
  bool has_negative_eigenvalues = false;  // strengths up to 2 (2411.12537)
  bool has_safe_gate = false;             // decays of channels are bounded: above exp(-5) per token
  double norm_eps = 1e-5;                 // of the norm of each head's output
  std::unique_ptr<Mixer> operator()(const MixerArgs& args, Rng rng) const;
};

// Linear attention (2006.16236): elu + 1 as feature map, divided by the sum of weights, then a norm per head. taylor2: FAST with p = 2
// (2402.07901): weights 1 + s + s^2 / 2 of standardised queries and keys, through features of width 1 + K + K^2; no norm.
enum class FeatureMap { elu1, taylor2 };
struct LinearAttentionOptions {
  FeatureMap feature_map = FeatureMap::elu1;
  int64_t heads = 1, head_dim = 0;
  int64_t kernel = 0;  // silu behind it, before the feature map
  std::unique_ptr<Mixer> operator()(const MixerArgs& args, Rng rng) const;
};

// RetNet (2307.08621): rotated queries and keys, head h decays by 1 - 2^(-5 - h), values are twice as wide; a norm and a gate.
// Its rotation is its own: base 10000 over the whole width, which is even, whatever MixerArgs::rotary says.
struct RetnetOptions {
  int64_t heads = 1;
  int64_t kernel = 0;  // silu behind it, before the rotation
  std::unique_ptr<Mixer> operator()(const MixerArgs& args, Rng rng) const;
};

// TransNormerLLM with Lightning Attention (2307.14995, 2401.04658, 2405.17381): constant decays that get weaker from layer to layer.
// slopes: exp(-2^(-8 (h + 1) / H) (1 - l / (L - 1) + 1e-5)), of the authors' code. linear: exp(-8 h / H (1 - l / L)), of another one.
enum class LightningDecay { slopes, linear };
struct LightningOptions {
  LightningDecay decay = LightningDecay::slopes;
  int64_t heads = 1;
  int64_t kernel = 0;
  std::unique_ptr<Mixer> operator()(const MixerArgs& args, Rng rng) const;
};

// Mamba-2 (SSD, 2405.21060): a decay per head and token; keys and queries of `groups` heads; inner width 2 dim, which heads divides.
struct Mamba2Options {
  int64_t heads = 1;
  int64_t groups = 1;       // divides heads
  int64_t state_dim = 128;  // width of keys and queries
  int64_t kernel = 4;       // tokens that the short convolution spans
  std::unique_ptr<Mixer> operator()(const MixerArgs& args, Rng rng) const;
};

// HGRN2 (2404.07904): the key is 1 - decay, per channel. heads 0: HGRN (2311.04823), whose state is one number per channel. Decays have lower
// bounds that grow from layer to layer; the model learns them for all layers together.
struct HgrnOptions {
  int64_t heads = 1;   // 0: HGRN
  int64_t kernel = 0;  // behind the projections of queries (HGRN2), decays and values
  std::unique_ptr<Mixer> operator()(const MixerArgs& args, Rng rng) const;
};

// Gated slot attention (2409.07146): softmax over `slots` memory slots per head, of which each token overwrites a gated share. Heads that share
// keys and values share the gates of their slots too.
struct GatedSlotsOptions {
  int64_t heads = 1;
  int64_t kv_heads = 0;  // divides heads; 0: heads
  int64_t slots = 64;
  int64_t kernel = 0;
  std::unique_ptr<Mixer> operator()(const MixerArgs& args, Rng rng) const;
};

// Softmax over positions, of logits x per channel or slot: keys exp(x_t - z_t), decays exp(z_(t-1) - z_t), with z the running log-sum-exp.
// lightnet (2405.21022): channels of the keys are the slots. efficient (1812.01243): the same, with a softmax over the channels of the query.
// agent (2312.08874): logits are products of keys with learned agents, which queries choose from. flare (2508.12594): agent whose queries
// are the keys, without scale.
enum class SlotKind { lightnet, efficient, agent, flare };
struct AdditiveSlotsOptions {
  SlotKind kind = SlotKind::lightnet;
  int64_t heads = 1;
  int64_t slots = 0;      // agent and flare; 0: 32
  int64_t gate_rank = 0;  // lightnet; 0: 128, at most dim
  int64_t kernel = 0;     // lightnet
  std::unique_ptr<Mixer> operator()(const MixerArgs& args, Rng rng) const;
};

// Flowformer (2202.06258), causal: flows into queries and out of keys are conserved.
struct FlowOptions {
  int64_t heads = 1;
  std::unique_ptr<Mixer> operator()(const MixerArgs& args, Rng rng) const;
};

// Rank-augmented linear attention (RALA, 2411.07635), causal: keys are weighted by their product with the mean query, the output is multiplied
// by a linear map of x.
struct RalaOptions {
  int64_t heads = 1;
  int64_t kernel = 4;  // of the convolution of values that is added
  std::unique_ptr<Mixer> operator()(const MixerArgs& args, Rng rng) const;
};

// Cheap controls. mean: the values' mean over all tokens up to this one. broadcast: half of each value, and half of that mean (context
// broadcasting, 2210.08457).
enum class PoolingKind { mean, broadcast };
struct PoolingOptions {
  PoolingKind kind = PoolingKind::mean;
  int64_t heads = 1;
  std::unique_ptr<Mixer> operator()(const MixerArgs& args, Rng rng) const;
};

// Miras (2504.13173), with a matrix per head as memory, which learns from every token by a step of gradient descent; gradients are taken at the
// memory of the beginning of the token's chunk. moneta: cubic loss, memory divided by its 4-norm. yaad: Huber's loss. memora: squared loss,
// softmax over the channels of the key. chunk is part of the model: 1 is a step per token.
enum class MirasKind { moneta, yaad, memora };
struct MirasOptions {
  MirasKind kind = MirasKind::yaad;
  int64_t heads = 1;
  int64_t chunk = 16;
  int64_t kernel = 4;  // 1 or more
  std::unique_ptr<Mixer> operator()(const MixerArgs& args, Rng rng) const;
};

using RecurrentList = OptionsList<GlaOptions, DeltaOptions, LinearAttentionOptions, RetnetOptions, LightningOptions,
                                  Mamba2Options, HgrnOptions, GatedSlotsOptions, AdditiveSlotsOptions, FlowOptions,
                                  RalaOptions, PoolingOptions, MirasOptions>;

}  // namespace weft
