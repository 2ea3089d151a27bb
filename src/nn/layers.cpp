#include "weft/nn/layers.h"

#include <cmath>

#include "src/nn/part_output.h"
#include "weft/autograd/functions.h"
#include "weft/core/dry_run.h"
#include "weft/core/error.h"
#include "weft/core/pattern.h"

namespace weft {

Tensor normal_init(const Shape& shape, Rng rng, double std) {
  MemoryTag tag("parameters");
  Tensor values = Tensor::empty(shape, kF32, Device::cpu());
  auto* out = values.mutable_data<float>();
  for (int64_t i = 0; i < values.num_elements() && !is_dry_run(); ++i)
    out[i] = static_cast<float>(std) * rng.normal(static_cast<uint64_t>(i));
  return to(values, default_device()).value();
}

Tensor uniform_init(const Shape& shape, Rng rng, double bound) {
  MemoryTag tag("parameters");
  Tensor values = Tensor::empty(shape, kF32, Device::cpu());
  auto* out = values.mutable_data<float>();
  for (int64_t i = 0; i < values.num_elements() && !is_dry_run(); ++i)
    out[i] = static_cast<float>(bound) * (2 * rng.uniform(static_cast<uint64_t>(i)) - 1);
  return to(values, default_device()).value();
}

static Tensor constant_init(const Shape& shape, double value) {
  MemoryTag tag("parameters");
  return Tensor::full(shape, value);
}

Linear::Linear(int64_t in, int64_t out, Rng rng, LinearOptions options)
    : weight_(normal_init({out, in}, rng["weight"], options.std)) {
  name_parts({{"weight", weight_}});
  if (!options.has_bias) return;
  bias_ = std::make_unique<Param>(constant_init({out}, 0));
  name_part({"bias", *bias_});
}

Var Linear::operator()(const Var& x) const {
  Scope scope(name());
  Var y = linear(x, weight_, bias_as(x.dtype()));
  if (!has_adapter()) return y;
  return y + linear(linear(x, *adapter_down_), *adapter_up_) * adapter_scale_;
}

Param& Linear::weight() {
  WEFT_CHECK(!has_adapter(), "linear: this layer has an adapter, and its matrix is read without it",
             "leave the layer out of the adapters' match");
  return weight_;
}

void Linear::add_adapter(int64_t rank, double scale, Rng rng) {
  const int64_t out = weight_.value().size(0), in = weight_.value().size(1);
  WEFT_CHECK(rank >= 1 && !has_adapter(),
             str("linear: an adapter of rank ", rank, has_adapter() ? " beside another" : ""),
             "give one, of rank 1 or more");
  adapter_down_ = std::make_unique<Param>(normal_init({rank, in}, rng["down"], 1 / std::sqrt(static_cast<double>(in))));
  adapter_up_ = std::make_unique<Param>(constant_init({out, rank}, 0));
  adapter_scale_ = scale;
  name_parts({{"adapter_down", *adapter_down_}, {"adapter_up", *adapter_up_}});
}

void add_adapters(Module& module, const std::vector<AdapterOptions>& adapters, Rng rng) {
  std::vector<bool> is_used(adapters.size());
  for (const NamedModule& part : module.modules()) {
    auto* linear = dynamic_cast<Linear*>(part.module);
    if (!linear) continue;
    for (size_t i = 0; i < adapters.size(); ++i) {
      const AdapterOptions& a = adapters[i];
      if (!matches_pattern(a.match, part.name)) continue;
      is_used[i] = true;
      if (!linear->has_adapter()) linear->add_adapter(a.rank, a.alpha / static_cast<double>(a.rank), rng[part.name]);
    }
  }
  for (size_t i = 0; i < adapters.size(); ++i)
    WEFT_CHECK(is_used[i], str("adapters: no linear layer matches '", adapters[i].match, "'"),
               "match paths such as layers.0.mixer.q or layers.*.ffn.*");
}

Var Linear::bias_as(DType dtype) const { return bias_ ? cast(*bias_, dtype) : Var(); }

Embedding::Embedding(int64_t count, int64_t dim, Rng rng, double std)
    : weight_(normal_init({count, dim}, rng["weight"], std)) {
  name_parts({{"weight", weight_}});
}

Var Embedding::operator()(const Tensor& ids) const {
  Scope scope(name());
  return embedding(weight_, ids);
}

Norm::Norm(int64_t dim, const NormOptions& options, const NormMaker& own, Rng rng) : options_(options) {
  if (own) {
    PartWatch watch;
    own_ = own({.dim = dim, .eps = options.eps}, rng);
    WEFT_CHECK(own_, "norm: its maker returned nothing", "let it return a part");
    watch.check_named(*own_, "norm");
    name_part({"own", *own_});
    return;
  }
  weight_ = std::make_unique<Param>(constant_init({dim}, 1));
  name_part({"weight", *weight_});
  if (options.kind != NormKind::layer || !options.has_bias) return;
  bias_ = std::make_unique<Param>(constant_init({dim}, 0));
  name_part({"bias", *bias_});
}

Var Norm::operator()(const Var& x) const {
  Scope scope(name());
  if (own_) {
    Var y = own_->forward(x);
    check_output(y, x, "norm");
    return y;
  }
  if (options_.kind == NormKind::rms) return rms_norm(x, *weight_, options_.eps);
  return layer_norm(x, *weight_, bias_ ? Var(*bias_) : Var(), options_.eps);
}

std::array<Var, 2> Norm::of_sum(const Var& x, const Var& y) const {
  if (own_ || x.shape() != y.shape() || x.dtype() != y.dtype()) {  // add() broadcasts, or says what is wrong
    Var sum = x + y;
    Var normed = (*this)(sum);
    return {sum, normed};
  }
  Scope scope(name());
  if (options_.kind == NormKind::rms) return add_rms_norm(x, y, *weight_, options_.eps);
  return add_layer_norm(x, y, *weight_, bias_ ? Var(*bias_) : Var(), options_.eps);
}

}  // namespace weft
