// A router chooses a few of many experts for each token. Mixtures of heads and of feed-forward networks use it.
//   z = x W;  p = softmax(z) in f32;  chosen: the `active` largest, at ties the lowest index;  weights are made from p of the chosen
// B batch, T tokens, D model width, E experts, K chosen per token.
#pragma once

#include "weft/nn/module.h"
#include "weft/nn/tokens.h"

namespace weft {

// Experts are chosen for padding too, but padding (see Tokens::counted) is left out of losses, loads and reports.
// p; p / sum of the chosen; the same without gradient through the sum; K p / sum; 1, with the gradient of p (straight-through).
enum class RouterWeights { raw, renorm, renorm_detached, renorm_scaled, hard };
// E sum_e P_e f_e of mean probability and load (Switch); the same with both divided by their sums over experts; per row of the batch.
enum class RouterBalance { load, normalised, per_row };

struct RouterOptions {
  int64_t experts = 1, active = 1;
  RouterWeights weights = RouterWeights::renorm_scaled;
  RouterBalance balance = RouterBalance::load;
  double balance_loss = 0.01, z_loss = 0;  // weights of the losses, which are means over layers; z: mean logsumexp(z)^2
  // The balance loss reads a running mean of the load over steps (a Buffer), not the load of this micro-batch. Then the loss does not
  // depend on how a step is split into micro-batches. Not with per_row.
  bool has_running_load = false;
  bool has_noise = false;        // in training z + N(0, 1) (softplus(x N) + 0.01); W and N start at 0 (2210.05144)
  bool has_fan_in_init = false;  // W starts uniform in +-1 / sqrt(D) (2505.07260), not N(0, std)
};

struct Routing {
  Tensor chosen_BTK;          // integers, the largest probability first
  Var weights_BTK;            // f32 or wider
  Var probabilities_BTE;      // the same
  Var dense_weights() const;  // [B, T, E], 0 for those not chosen
};

class Router final : public Module {
 public:
  // `layers`: of the model, over which losses are averaged. Without `dim` there is no W: choose() only.
  Router(const RouterOptions& options, int64_t dim, int64_t layers, double std, Rng rng);
  Routing operator()(const Var& x_BTD, Tokens& tokens);
  Routing choose(const Var& logits_BTE, Tokens& tokens);
  const RouterOptions& options() const { return o_; }

 private:
  void add_losses(const Routing& routing, const Var& logits_BTE, Tokens& tokens);

  RouterOptions o_;
  double share_;                           // of a layer in the model's losses
  std::unique_ptr<Param> weight_, noise_;  // [E, D]
  std::unique_ptr<Buffer> load_;           // [E]
};

}  // namespace weft
