#include "trainers/conformance/subject.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace weft::conformance {

MixerArgs Subject::test_args(int64_t dim, int64_t context) {
  return {.dim = dim, .context = context, .layer = 1, .layers = 4, .std = 0.4, .out_std = 0.4};
}

std::unique_ptr<Mixer> Subject::make(DType compute, uint64_t seed) const {
  PartWatch watch;
  std::unique_ptr<Mixer> mixer = row_(args_, Rng(seed));
  watch.check_named(*mixer, row_.name);
  // Off the initial values: what starts at 0 or 1 would hide itself.
  for (const NamedParam& p : mixer->params()) {
    Tensor noise = Tensor::empty(p.param->value().shape(), kF32, Device::cpu());
    Rng rng = Rng(seed)["noise"][p.name];
    for (int64_t i = 0; i < noise.num_elements(); ++i)
      noise.mutable_data<float>()[i] = 0.2f * rng.normal(static_cast<uint64_t>(i));
    p.param->set_value(add(p.param->value(), to(noise, p.param->value().device())).value());
  }
  mixer->set_compute(compute);
  return mixer;
}

Var Subject::run(Mixer& mixer, const Var& x_BTD, const TokenData& data, const TokensOptions& options) const {
  Tokens tokens(data, options);
  tokens.share("embedding", x_BTD * 0.5);
  Tensor fixed = normal_input({1, args_.context, x_BTD.size(2)}, x_BTD.dtype(), 77);
  tokens.share(fixed_sequence_name(args_.layer), to(fixed, x_BTD.device()));
  Var y = mixer.forward(x_BTD, tokens);
  tokens.finish_decode_step();
  return y;
}

Tensor normal_input(const Shape& shape, DType dtype, uint64_t seed) {
  Tensor x = Tensor::empty(shape, kF32, Device::cpu());
  for (int64_t i = 0; i < x.num_elements(); ++i)
    x.mutable_data<float>()[i] = Rng(seed).normal(static_cast<uint64_t>(i));
  return cast(Var(x), dtype).value();
}

std::vector<double> numbers_of(const Tensor& x) { return cast(Var(x.cpu()), kF64).value().to_vector<double>(); }

double largest_difference(const std::vector<double>& a, const std::vector<double>& b) {
  if (a.size() != b.size()) return HUGE_VAL;
  double worst = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    double difference = std::abs(a[i] - b[i]);
    worst = std::isnan(difference) ? HUGE_VAL : std::max(worst, difference);
  }
  return worst;
}

double relative_difference(const std::vector<double>& a, const std::vector<double>& b) {
  if (a.size() != b.size()) return HUGE_VAL;
  double difference = 0, size = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += (a[i] - b[i]) * (a[i] - b[i]);
    size += b[i] * b[i];
  }
  double relative = std::sqrt(difference / size);
  return std::isfinite(relative) ? relative : HUGE_VAL;
}

Outcome within(double value, double bound, std::string_view what) {
  return {value <= bound ? Verdict::passed : Verdict::failed,
          fmt::format("{} {:.2g}, bound {:.2g}", what, value, bound)};
}

}  // namespace weft::conformance
