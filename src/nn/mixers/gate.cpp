#include "src/nn/mixers/gate.h"

namespace weft {

Gate::Gate(const GateOptions& options, int64_t dim, int64_t heads, int64_t width, double std, Rng rng)
    : o_(options), heads_(heads), width_(options.is_per_head ? 1 : width) {
  if (o_.reads_input) {
    project_ = std::make_unique<Linear>(dim, heads_ * width_, rng, LinearOptions{.std = std});
    name_parts({{"project", *project_}});
  } else {
    constant_ = std::make_unique<Param>(Tensor::zeros({heads_, width_}));
    name_parts({{"constant", *constant_}});
  }
}

Var Gate::activate(const Var& x) const {
  switch (o_.activation) {
    case GateActivation::silu: return silu(x);
    case GateActivation::shifted_sigmoid: return sigmoid(x) * 0.5 + 0.5;
    case GateActivation::identity: return x;
    case GateActivation::sigmoid: break;
  }
  return sigmoid(x);
}

Var Gate::operator()(const Var& y_BTHC, const Var& x_BTD) const {
  Var z = project_ ? split_heads((*project_)(x_BTD), heads_) : cast(*constant_, y_BTHC.dtype());
  z = activate(z);
  if (o_.is_head_shared) z = mean(z, -2, true);
  return o_.is_additive ? y_BTHC + z : y_BTHC * z;
}

}  // namespace weft
