// A decoder-only language model put together from plain options: embedding, blocks of (norm, mixer, norm, feed-forward) or of (norm, mixer)
// on a residual stream, final norm, output weight.
//   LanguageModel model({.vocab = 256, .dim = 128, .layers = 4, .context = 256, .mixers = {SoftmaxOptions{.heads = 4}}}, Rng(1));
//   backward(model.loss(batch_tokens, targets, tokens, 1.0 / num_targets).loss);
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "weft/nn/mixers.h"
#include "weft/nn/residual.h"

namespace weft {

enum class PositionKind { rotary, learned, none };
enum class Recompute { none, mixers, blocks };

struct LanguageModelOptions {
  int64_t vocab = 0, dim = 0, layers = 0, context = 0;
  bool has_tied_embedding = true;
  NormOptions norm = {};
  PositionKind position = PositionKind::rotary;
  ops::RotaryOptions rotary = {};
  std::vector<MixerMaker> mixers = {SoftmaxOptions{}};
  std::vector<int> pattern = {};  // mixer of each layer, repeated; empty: all mixers in turn
  FfnOptions ffn = {};            // dim and the stds are filled in by the model
  bool has_ffn = true;            // false: a layer is a norm and a mixer, and `ffn` is not read
  ResidualMaker residual = StandardResidualOptions{};
  double residual_dropout = 0;
  std::vector<int32_t> fixed_text =
      {};             // of mixers that read one: at least `context` ids; under learned positions at 0, 1, ..
  double std = 0.02;  // of all initial weights for which nothing else is said
  std::optional<double> embedding_std = {};  // of the token embedding, which a tied output head is; otherwise std
  std::optional<double> out_std = {};        // of output projections, the last ones into the stream; otherwise std
  bool scales_init_by_depth = true;          // that of output projections is divided by sqrt(num_sublayers())
  Recompute recompute = Recompute::none;
  NormMaker own_norm = {};  // of the blocks and before the output head, in place of `norm`, whose eps it is given
  FfnMaker own_ffn = {};    // in place of `ffn`
  std::vector<AdapterOptions> adapters = {};

  int64_t num_sublayers() const { return (has_ffn ? 2 : 1) * layers; }  // that write to the residual stream
};

// What the makers of the model's mixers get.
MixerArgs mixer_args(const LanguageModelOptions& options, int64_t layer);

struct LanguageModelLoss {
  Var loss;       // factor * sum of token losses + weighted auxiliary losses
  Tensor losses;  // [B, T] f32 nats, 0 where the target is ignored
};

class LanguageModel final : public Module {
 public:
  LanguageModel(const LanguageModelOptions& options, Rng rng);
  ~LanguageModel() override;

  Var hidden(const Tensor& ids_BT, Tokens& tokens);  // [B, T, D] after the final norm
  // Cross-entropy of targets [B, T] i32 (-1: ignored; those of padding too), in chunks. `factor` is usually 1 / number of targets of
  // the step.
  LanguageModelLoss loss(const Tensor& ids_BT, const Tensor& targets_BT, Tokens& tokens, double factor);
  Tensor logits(const Tensor& ids_BT,
                Tokens& tokens);            // [B, T, V] f32, or f64 where the model computes in it; no gradient
  Var output(const Var& hidden_BTD) const;  // the same of hidden(), with gradients

  const LanguageModelOptions& options() const { return options_; }
  void set_recompute(Recompute recompute) { options_.recompute = recompute; }
  int64_t num_matmul_params() const;  // in matrix products; a tied head once, no look-up tables
  // Those that one token uses: without experts, and queries and outputs of heads, that it does not choose.
  int64_t num_active_params() const;
  double flops_per_token() const;  // training: 6 per matmul parameter, plus attention with its mask

 private:
  struct Block;
  class Sum;
  Var mix(Block& block, Sum& x, Tokens& tokens);
  Var feed_forward(Block& block, Sum& x, Tokens& tokens);
  Sum run_blocks(const Var& x, Tokens& tokens, bool is_recomputed);
  void report_activations(Block& block, const Var& x, Tokens& tokens);
  Var at_positions(const Var& x_BTD, const Tokens& tokens) const;
  void add_fixed_sequence(Rng rng);
  void share_fixed_sequence(Tokens& tokens);
  const Param& output_weight() const;

  LanguageModelOptions options_;
  Embedding embedding_;
  std::unique_ptr<Embedding> positions_;
  std::vector<std::unique_ptr<Block>> blocks_;
  std::unique_ptr<Residual> residual_;
  FixedSequence fixed_kind_ = FixedSequence::none;
  std::unique_ptr<Buffer> fixed_;  // [context, D], or ids [context]; constant
  Norm norm_;
  std::unique_ptr<Linear> head_;
};

}  // namespace weft
