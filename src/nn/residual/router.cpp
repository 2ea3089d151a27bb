#include "src/nn/residual/router.h"

namespace weft {

namespace {

DType wide(const Var& x) { return x.dtype() == kF64 ? kF64 : kF32; }

}  // namespace

DepthSource depth_source(const Var& value, const RoutedResidualOptions& options, double eps) {
  bool reads = options.weights == ResidualWeights::softmax || options.weights == ResidualWeights::sigmoid;
  if (!reads || !options.has_key_norm) return {value, {}};
  return {value, rsqrt(mean(square(cast(value, wide(value))), -1, true) + eps)};
}

Var weighted_sum(const Var& weights_BTN, std::span<const DepthSource> sources) {
  Var total;
  for (size_t i = 0; i < sources.size(); ++i) {
    const auto at = static_cast<int64_t>(i);
    Var part = cast(slice(weights_BTN, -1, at, at + 1), sources[i].value.dtype()) * sources[i].value;
    total = total.defined() ? total + part : part;
  }
  return total;
}

Router::Router(const RoutedResidualOptions& options, int64_t dim, int64_t num_sources, Rng rng) : o_(options) {
  bool reads = o_.weights == ResidualWeights::softmax || o_.weights == ResidualWeights::sigmoid;
  if (reads) {
    query_ = std::make_unique<Param>(normal_init({dim}, rng["query"], o_.query_std));
    name_part({"query", *query_});
    if (o_.has_key_norm && o_.has_key_gain) {
      gain_ = std::make_unique<Param>(Tensor::full({dim}, 1));
      name_part({"gain", *gain_});
    }
  } else {
    scores_ = std::make_unique<Param>(Tensor::full({num_sources}, o_.weights == ResidualWeights::scalars ? 1 : 0));
    name_part({"scores", *scores_});
  }
  if (o_.has_null_source) {
    null_ = std::make_unique<Param>(Tensor::zeros({dim}));
    name_part({"null", *null_});
  }
}

Var Router::weights(std::span<const DepthSource> sources) const {
  const Var& first = sources[0].value;
  const auto n = static_cast<int64_t>(sources.size());
  if (scores_) {
    Var row = o_.weights == ResidualWeights::scalars ? Var(*scores_) : softmax(*scores_);
    return expand(reshape(row, {1, 1, n}), {first.size(0), first.size(1), n});
  }
  Var direction = gain_ ? Var(*query_) * Var(*gain_) : Var(*query_);
  Var row_1D = unsqueeze(direction, 0);
  std::vector<Var> scores;
  for (const DepthSource& source : sources) {
    Var score = cast(linear(source.value, cast(row_1D, source.value.dtype())), wide(first));
    scores.push_back(source.scale.defined() ? score * source.scale : score);
  }
  Var all = concatenate(scores, -1);
  return o_.weights == ResidualWeights::sigmoid ? sigmoid(all) : softmax(all);
}

Var Router::operator()(std::vector<DepthSource> sources) const {
  Scope scope(name());
  if (null_) {
    const Var& like = sources[0].value;
    Var null_BTD = expand(cast(*null_, like.dtype()), like.shape());
    sources.insert(sources.begin(), depth_source(null_BTD, o_, 1e-6));
  }
  return weighted_sum(weights(sources), sources);
}

}  // namespace weft
