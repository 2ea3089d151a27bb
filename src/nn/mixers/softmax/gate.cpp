#include "src/nn/mixers/softmax/gate.h"

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

Var Gate::operator()(const Var& y_BTHC, const Var& x_BTD, Tokens& tokens) const {
  Scope scope(name());
  Var z = project_ ? split_heads((*project_)(x_BTD), heads_) : cast(*constant_, y_BTHC.dtype());
  z = activate(z);
  if (tokens.takes_reports()) {  // per head; saturated: within 0.05 of the ends of a sigmoid
    const int64_t H = z.size(-2);
    NoGrad no_grad;
    auto values = cast(z, kF32).value().to_vector<float>();
    std::vector<double> sums(static_cast<size_t>(H), 0), ends(sums);
    const auto width = static_cast<size_t>(z.size(-1));
    double count = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      size_t h = i / width % static_cast<size_t>(H);
      if (project_ && tokens.is_padding(static_cast<int64_t>(i / (width * static_cast<size_t>(H))))) continue;
      sums[h] += static_cast<double>(values[i]), ends[h] += values[i] < 0.05f || values[i] > 0.95f ? 1 : 0;
      if (h == 0) ++count;
    }
    for (size_t h = 0; h < sums.size(); ++h) tokens.report(str("mean/", h), sums[h], count);
    if (o_.activation == GateActivation::sigmoid)
      for (size_t h = 0; h < ends.size(); ++h) tokens.report(str("saturated/", h), ends[h], count);
  }
  if (o_.is_head_shared) z = mean(z, -2, true);
  return o_.is_additive ? y_BTHC + z : y_BTHC * z;
}

}  // namespace weft
