#include "src/nn/residual/depth_router.h"

namespace weft {

namespace {

DType wide(const Var& x) { return x.dtype() == kF64 ? kF64 : kF32; }

}  // namespace

DepthSource depth_source(const Var& value, const RoutedResidualOptions& options, double eps) {
  bool reads = options.weights == ResidualWeights::softmax || options.weights == ResidualWeights::sigmoid;
  if (!reads || !options.has_key_norm) return DepthSource(value);
  return DepthSource(value, rsqrt(mean(square(cast(value, wide(value))), -1, true) + eps));
}

Var weighted_sum(const Var& weights_BTN, std::span<const DepthSource> sources) {
  Var total;
  for (size_t i = 0; i < sources.size(); ++i) {
    const auto at = static_cast<int64_t>(i);
    const Var& v = sources[i].value();
    Var part = cast(slice(weights_BTN, -1, at, at + 1), v.dtype()) * v;
    total = total.defined() ? total + part : part;
  }
  return total;
}

DepthRouter::DepthRouter(const RoutedResidualOptions& options, int64_t dim, int64_t num_sources, Rng rng)
    : o_(options) {
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

Var DepthRouter::operator()(std::vector<DepthSource> sources, Tokens& tokens) const {
  Scope scope(name());
  if (null_) {
    const Var& like = sources[0].value();
    Var null_BTD = expand(cast(*null_, like.dtype()), like.shape());
    sources.insert(sources.begin(), depth_source(null_BTD, o_, 1e-6));
  }
  const Var& first = sources[0].value();
  if (scores_) {  // the same for all tokens
    const auto n = static_cast<int64_t>(sources.size());
    Var row = o_.weights == ResidualWeights::scalars ? Var(*scores_) : softmax(*scores_);
    Var weights_BTN = expand(reshape(row, {1, 1, n}), {first.size(0), first.size(1), n});
    report(weights_BTN, tokens);
    return weighted_sum(weights_BTN, sources);
  }
  DepthMixVar mixed = depth_mix(sources, direction(wide(first)), o_.weights == ResidualWeights::sigmoid);
  report(mixed.weights, tokens);
  return mixed.out;
}

Var DepthRouter::direction(DType dtype) const { return cast(gain_ ? Var(*query_) * Var(*gain_) : Var(*query_), dtype); }

Var DepthRouter::read(DepthGroup& group, int64_t query, std::span<const DepthSource> own, Tokens& tokens) const {
  Scope scope(name());
  const DType dtype = own.empty() ? kF32 : wide(own[0].value());
  DepthMixVar mixed = group.read(query, own, direction(dtype), tokens.takes_reports());
  if (mixed.weights.defined()) report(mixed.weights, tokens);
  return mixed.out;
}

void DepthRouter::report(const Var& weights_BTN, Tokens& tokens) const {
  if (!tokens.takes_reports()) return;
  NoGrad no_grad;
  tokens.report_means("weight", weights_BTN);
  tokens.report_means("max_weight", max(weights_BTN, -1, true));
}

}  // namespace weft
