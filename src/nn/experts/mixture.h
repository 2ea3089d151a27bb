// Mixture of heads: which heads of softmax attention a token uses, and with what weights.
#pragma once

#include "weft/nn/experts/router.h"
#include "weft/nn/layers.h"
#include "weft/nn/mixers/softmax.h"

namespace weft {

class HeadMixture final : public Module {
 public:
  HeadMixture(const HeadMixtureOptions& options, int64_t heads, const MixerArgs& args, Rng rng);

  struct Choice {
    Var weights_BTH;    // 0 for heads that the token does not use
    Tensor chosen_BTK;  // of the routed heads, from 0
  };
  Choice choose(const Var& x_BTD, const Var& q_BTHK, Tokens& tokens);
  // {out, lse} of the core; grouped: only for the pairs of token and head that were chosen, 0 for others.
  // `sink` as in Tokens::attend.
  std::array<Var, 2> attend(const Var& q_BTHK, const Var& k_BTGK, const Var& v_BTGV, const Choice& choice,
                            Tokens& tokens, const ops::AttentionOptions& core, const Var& sink) const;

 private:
  bool is_grouped(const Tokens& tokens, const ops::AttentionOptions& core) const;

  HeadMixtureOptions o_;
  int64_t heads_;
  Router router_;
  std::unique_ptr<Linear> shared_, kind_;
};

}  // namespace weft
