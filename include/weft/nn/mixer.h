// Token mixers: the part of a block in which tokens see each other.
//   struct SinkOptions { ...; std::unique_ptr<Mixer> operator()(const MixerArgs&, Rng) const; };
//   LanguageModelOptions{..., .mixers = {SinkOptions{.heads = 8}}}
// The options of a mixer are a function that makes it; the model calls it once per layer. Any function of the same signature works.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "weft/nn/layers.h"
#include "weft/nn/tokens.h"

namespace weft {

// A few mixers do not compute queries and keys from their input, but from a fixed sequence that is the same for every row: random vectors,
// or the first tokens of the training text. The model passes this sequence through its layers, as it does with the batch. In each layer it
// shares what the mixer would read of it (Tokens::shared).
enum class FixedSequence { none, random, text };
std::string fixed_sequence_name(int64_t layer);  // under which Tokens shares it: [1, context, D]

class Mixer : public Module {
 public:
  virtual FixedSequence fixed_sequence() const { return FixedSequence::none; }
  virtual int64_t num_experts() const {
    return 0;
  }  // that it shares with the block's feed-forward network (FfnKind::umoe)
  virtual int64_t num_expert_params() const { return 0; }     // of one of them, as the network uses it
  virtual Var forward(const Var& x_BTD, Tokens& tokens) = 0;  // x is normed; [batch, tokens, dim] -> the same
  // Floating-point operations of training on one token, forward and backward, without the 6 per matrix parameter. `keys`: how many keys a
  // query sees on average. Softmax attention: 12 * heads * width * keys.
  virtual double flops_per_token(double keys) const = 0;
  // Parameters that a token leaves unused because it chooses others: experts, and queries and outputs of heads of a mixture. The keys and values of
  // a head count as used, for other tokens read them.
  virtual int64_t num_idle_params() const { return 0; }
  virtual double keys_per_query(
      int64_t context) const;  // mean over a row of `context` tokens; unless overridden, causal
};

// Parameters that layers of one model have together, by name. Whoever asks first makes one; every layer that reads it names it as a part.
using ModelParams = std::map<std::string, std::shared_ptr<Param>>;

// What the model knows and a mixer may need.
struct MixerArgs {
  int64_t dim = 0;
  int64_t context = 0;                                              // length of a training sequence
  int64_t layer = 0, layers = 1;                                    // which of how many
  std::optional<ops::RotaryOptions> rotary = ops::RotaryOptions{};  // unset: the mixer does not rotate
  double norm_eps = 1e-6;
  double std = 0.02, out_std = 0.02;           // of initial weights; out_std of what writes to the residual stream
  std::shared_ptr<ModelParams> of_model = {};  // null: there are no other layers
  // Of the config's `custom` mixers.
  std::map<std::string, double> numbers = {};
  std::map<std::string, std::string> texts = {};
};

// Structs of options: a header of mixers ends with the list of its own.
template <class... Options>
struct OptionsList {};

using MixerMaker = std::function<std::unique_ptr<Mixer>(const MixerArgs&, Rng)>;

// [B, T, heads * width] -> [B, T, heads, width] and back.
Var split_heads(const Var& x, int64_t heads);
Var merge_heads(const Var& x);

// Mean number of keys that a query of a row of `context` tokens sees: causal, the last `window` of them (0: all).
double causal_keys(int64_t context, int64_t window = 0);

}  // namespace weft
