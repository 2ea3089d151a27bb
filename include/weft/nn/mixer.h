// Token mixers: the exchangeable part of a block that lets tokens see each other.
//   struct SinkOptions { ...; std::unique_ptr<Mixer> operator()(const MixerArgs&, Rng) const; };
//   LanguageModelOptions{..., .mixers = {SinkOptions{.heads = 8}}}
// Options of a mixer are its maker: the model calls them once per layer. A function of the same signature will do as well.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "weft/nn/layers.h"
#include "weft/nn/tokens.h"

namespace weft {

// Of what a mixer may make queries and keys instead of its input: a sequence that is the same for every row, random or the first tokens of
// the training text. The model runs it through its layers beside the batch; each layer shares what its mixer would read.
enum class FixedSequence { none, random, text };
std::string fixed_sequence_name(int64_t layer);  // under which Tokens shares it: [1, context, D]

class Mixer : public Module {
 public:
  virtual FixedSequence fixed_sequence() const { return FixedSequence::none; }
  virtual Var forward(const Var& x_BTD, Tokens& tokens) = 0;  // x is normed; [batch, tokens, dim] -> the same
  // Products that training a token costs besides 6 per matrix parameter, forward and backward together, given how many keys a
  // query sees on average: softmax attention 12 * heads * width * keys.
  virtual double flops_per_token(double keys) const = 0;
  virtual double keys_per_query(
      int64_t context) const;  // mean over a row of `context` tokens; unless overridden, causal
};

// What the model knows and a mixer may need.
struct MixerArgs {
  int64_t dim = 0;
  int64_t context = 0;                                              // length of a training sequence
  int64_t layer = 0, layers = 1;                                    // which of how many
  std::optional<ops::RotaryOptions> rotary = ops::RotaryOptions{};  // unset: positions are not the mixer's business
  double norm_eps = 1e-6;
  double std = 0.02, out_std = 0.02;  // of initial weights; out_std of what writes to the residual stream
  // Of the config's `custom` mixers.
  std::map<std::string, double> numbers = {};
  std::map<std::string, std::string> texts = {};
};

using MixerMaker = std::function<std::unique_ptr<Mixer>(const MixerArgs&, Rng)>;

// [B, T, heads * width] -> [B, T, heads, width] and back.
Var split_heads(const Var& x, int64_t heads);
Var merge_heads(const Var& x);

// Mean number of keys that a query of a row of `context` tokens sees: causal, the last `window` of them (0: all).
double causal_keys(int64_t context, int64_t window = 0);

}  // namespace weft
