// The layers of a language model, each a mixer and a feed-forward network with a norm in front, or a mixer alone, and the residual state
// between them.
#pragma once

#include <memory>
#include <utility>

#include "weft/models/language_model.h"

namespace weft {

struct LanguageModel::Block final : Module {
  Block(const LanguageModelOptions& o, const MixerMaker& make_mixer, int64_t layer,
        const std::shared_ptr<ModelParams>& of_model, Rng rng);
  Norm mixer_norm;
  std::unique_ptr<Mixer> mixer;
  std::unique_ptr<Norm> ffn_norm;  // with ffn, nothing where layers are mixers alone
  std::unique_ptr<Ffn> ffn;
};

// The state of a residual stream whose last term may still have to be added: the norm that reads the state adds it on its way.
class LanguageModel::Sum {
 public:
  explicit Sum(Var x) : x_(std::move(x)) {}

  const Var& value() {
    if (term_.defined()) x_ = x_ + std::exchange(term_, Var());
    return x_;
  }
  Var normed(const Norm& norm) {
    if (!term_.defined()) return norm(x_);
    auto [sum, y] = norm.of_sum(x_, std::exchange(term_, Var()));
    x_ = std::move(sum);
    return y;
  }
  void add(Var term) {
    value();
    term_ = std::move(term);
  }

 private:
  Var x_, term_;
};

}  // namespace weft
