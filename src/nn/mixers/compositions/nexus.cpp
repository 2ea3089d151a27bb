// Nexus (2512.03377) and the modern Hopfield layer (2008.02217): queries that are outputs of attention.
//   Nexus:    q <- attend(q, q, q), k <- attend(k, k, k), order - 1 times; then attend(q, k, v)
//   Hopfield: q <- attend(beta q, k, k), `steps` times; then attend(beta q, k, v)
// What a call reads as values is not rotated, so that the next call can rotate it by its own positions. Norms of q and k stand behind the
// projections and, with the same gains, before the outer call; inner calls in between are not normed.
#include <cmath>

#include "weft/core/error.h"
#include "weft/nn/mixers/compositions.h"
#include "weft/nn/mixers/projected.h"

namespace weft {

namespace {

class Nexus final : public ProjectedMixer {
 public:
  Nexus(const NexusOptions& o, const MixerArgs& args, Rng rng)
      : ProjectedMixer("nexus", {o.heads, o.kv_heads, o.head_dim}, args, rng), o_(o) {
    WEFT_CHECK(o_.order >= 1, str("nexus: order ", o_.order), "use 1 (ordinary attention) or more");
    WEFT_CHECK(!o_.has_values_of_layer || s_.kv_heads == s_.heads,
               str("nexus: inner calls on the layer's values with ", s_.kv_heads, " kv_heads of ", s_.heads, " heads"),
               "use as many kv_heads as heads, or inner values of their own");
    if (!o_.has_qk_norm) return;
    q_norm_ = std::make_unique<Norm>(s_.head_dim, NormOptions{NormKind::rms, args.norm_eps});
    k_norm_ = std::make_unique<Norm>(s_.head_dim, NormOptions{NormKind::rms, args.norm_eps});
    name_parts({{"q_norm", *q_norm_}, {"k_norm", *k_norm_}});
  }

  Var forward(const Var& x_BTD, Tokens& tokens) override {
    Scope scope(name());
    Var q = normed(q_norm_, queries(x_BTD)), k = normed(k_norm_, keys(x_BTD));
    Var v = values(x_BTD);
    for (int64_t order = 1; order < o_.order; ++order) q = inner(q, v, tokens), k = inner(k, v, tokens);
    if (o_.order > 1) q = normed(q_norm_, q), k = normed(k_norm_, k);
    return written(tokens.attend(rotated(q, args_, tokens), rotated(k, args_, tokens), v)[0], tokens);
  }

  double flops_per_token(double keys) const override {
    auto calls = static_cast<double>(s_.heads + (o_.order - 1) * (s_.heads + s_.kv_heads));
    return 12.0 * calls * static_cast<double>(s_.head_dim) * keys;
  }

 private:
  static Var normed(const std::unique_ptr<Norm>& norm, const Var& x) { return norm ? (*norm)(x) : x; }
  Var inner(const Var& x, const Var& v, Tokens& tokens) const {
    Var turned = rotated(x, args_, tokens);
    return tokens.attend(turned, turned, o_.has_values_of_layer ? v : x)[0];
  }

  NexusOptions o_;
  std::unique_ptr<Norm> q_norm_, k_norm_;
};

class Hopfield final : public ProjectedMixer {
 public:
  Hopfield(const HopfieldOptions& o, const MixerArgs& args, Rng rng)
      : ProjectedMixer("hopfield", {o.heads, o.kv_heads, o.head_dim}, args, rng),
        steps_(o.steps),
        log_beta_(Tensor::full({s_.heads}, -0.5 * std::log(static_cast<double>(s_.head_dim)))) {
    WEFT_CHECK(steps_ >= 0, str("hopfield: steps ", steps_), "use 0 (ordinary attention) or more");
    name_parts({{"log_beta", log_beta_}});
  }

  Var forward(const Var& x_BTD, Tokens& tokens) override {
    Scope scope(name());
    Var state = queries(x_BTD), k = keys(x_BTD);
    Var v = values(x_BTD), turned_k = rotated(k, args_, tokens);
    Var beta_H1 = unsqueeze(cast(exp(Var(log_beta_)), state.dtype()), -1);
    for (int64_t step = 0; step <= steps_; ++step)
      state = tokens.attend(rotated(state * beta_H1, args_, tokens), turned_k, step < steps_ ? k : v, {.scale = 1})[0];
    return written(state, tokens);
  }

  double flops_per_token(double keys) const override {
    return 12.0 * static_cast<double>((1 + steps_) * s_.heads * s_.head_dim) * keys;
  }

 private:
  int64_t steps_;
  Param log_beta_;  // [H]
};

}  // namespace

std::unique_ptr<Mixer> NexusOptions::operator()(const MixerArgs& args, Rng rng) const {
  return std::make_unique<Nexus>(*this, args, rng);
}
std::unique_ptr<Mixer> HopfieldOptions::operator()(const MixerArgs& args, Rng rng) const {
  return std::make_unique<Hopfield>(*this, args, rng);
}

}  // namespace weft
