#include "src/nn/mixers/recurrent/parts.h"

#include <cmath>

#include "src/core/not_finite.h"
#include "weft/core/dry_run.h"
#include "weft/core/error.h"

namespace weft::recurrent {

ShortConv::ShortConv(int64_t channels, int64_t width, Rng rng, Options options) : has_silu_(options.has_silu) {
  if (width == 0) return;
  weight_ = std::make_unique<Param>(uniform_init({channels, width}, rng["weight"], inverse_root(width)));
  name_part({"weight", *weight_});
  if (!options.has_bias) return;
  bias_ = std::make_unique<Param>(Tensor::zeros({channels}));
  name_part({"bias", *bias_});
}

Var ShortConv::operator()(const Var& x, Tokens& tokens) const {
  if (!weight_) return x;
  Scope scope(name());
  Var y = tokens.conv(x, cast(*weight_, x.dtype()), bias_ ? cast(*bias_, x.dtype()) : Var());
  return has_silu_ ? silu(y) : y;
}

Var wide_linear(const Var& x, Linear& projection) {
  const DType dtype = wide(x);
  Var y = matmul(x, projection.weight(), {.transpose_b = true, .out = dtype}), bias = projection.bias_as(dtype);
  return bias.defined() ? y + bias : y;
}

Var floored(const Var& log_decay) {
  constexpr double kFloor = -1e4;
  return clamp_min(log_decay, kFloor);
}

Var elu1(const Var& x) { return relu(x) + exp(clamp_max(x, 0)); }

Var summed_exp(std::string_view what, const Var& x) {
  constexpr double kLargest = 600;  // sums of exp() of it, and of its inverse, are far from the ends of f64
  Var exponents = cast(x, kF64);
  if (x.device().is_cpu() && !is_dry_run() && x.value().num_elements() > 0) {
    const double largest = max(reshape(abs(exponents.detach()), {-1}), 0).value().item();
    if (!(largest <= kLargest))
      fail_as<NotFinite>(str(what, " of size ", largest, ": sums of exponentials hold sizes up to ", kLargest),
                         "normalise what the layer reads, or lower the learning rate");
  }
  return exp(exponents);
}

Var l2_normed(const Var& x_BTHK) {
  const auto K = static_cast<double>(x_BTHK.size(-1));
  Tensor gain = Tensor::full({x_BTHK.size(-1)}, 1 / std::sqrt(K), wide(x_BTHK), x_BTHK.device());
  return rms_norm(x_BTHK, gain, 1e-6 / K);
}

Var rms_normed(const Var& x, double eps) {
  return rms_norm(x, Tensor::full({x.size(-1)}, 1, wide(x), x.device()), eps);
}

MixerArgs unrotated(MixerArgs args) {
  args.rotary.reset();
  return args;
}

Var vector_like(const Var& x, const std::vector<double>& numbers) {
  Tensor all = Tensor::from(std::span<const double>(numbers), {static_cast<int64_t>(numbers.size())});
  return cast(to(all, x.device()), wide(x));
}

double inverse_root(int64_t width) { return 1 / std::sqrt(static_cast<double>(width)); }

double recurrence_flops(int64_t heads, int64_t key_width, int64_t value_width, bool is_delta) {
  return 3.0 * (is_delta ? 6 : 4) * static_cast<double>(heads * key_width * value_width);
}

void check_heads(std::string_view what, int64_t heads, int64_t width) {
  WEFT_CHECK(heads >= 1 && width % heads == 0, str(what, ": ", heads, " heads for a width of ", width),
             "choose heads among the divisors of the width");
}

void check_kernel(std::string_view what, int64_t kernel) {
  WEFT_CHECK(kernel >= 0, str(what, ": kernel ", kernel), "use 0 (no convolution) or more");
}

static Tensor transformed(Tensor uniform, double (*f)(double)) {
  auto* values = uniform.mutable_data<float>();
  for (int64_t i = 0; i < uniform.num_elements() && !is_dry_run(); ++i)
    values[i] = static_cast<float>(f(static_cast<double>(values[i])));
  return to(uniform, default_device()).value();
}

static Tensor uniform(int64_t count, Rng rng, double low, double high) {
  Tensor values = Tensor::empty({count}, kF32, Device::cpu());
  for (int64_t i = 0; i < count && !is_dry_run(); ++i)
    values.mutable_data<float>()[i] =
        static_cast<float>(low + (high - low) * static_cast<double>(rng.uniform(static_cast<uint64_t>(i))));
  return values;
}

Tensor log_rates(int64_t count, double low, double high, Rng rng) {
  return transformed(uniform(count, rng, low, high), [](double rate) { return std::log(rate); });
}

Tensor step_biases(int64_t count, Rng rng) {
  return transformed(uniform(count, rng, std::log(1e-3), std::log(1e-1)), [](double log_step) {
    const double step = std::max(std::exp(log_step), 1e-4);
    return step + std::log(-std::expm1(-step));
  });
}

}  // namespace weft::recurrent
