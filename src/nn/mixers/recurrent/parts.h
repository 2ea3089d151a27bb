// What recurrent mixers are made of: short convolutions, norms of keys, gates in logs, initial values of decays.
// B batch, T tokens, H heads, K key width, V value width.
#pragma once

#include <vector>

#include "weft/autograd/recurrence.h"
#include "weft/nn/mixer.h"

namespace weft::recurrent {

// Decays and sums over tokens are kept in f32, for f64 in f64.
inline DType wide(const Var& x) { return x.dtype() == kF64 ? kF64 : kF32; }

// silu(convolution over this token and the width - 1 before it), per channel. Its weights start in [-1, 1) / sqrt(width). Of width 0 it gives x
// itself.
class ShortConv final : public Module {
 public:
  struct Options {
    bool has_bias = false, has_silu = true;
  };
  ShortConv(int64_t channels, int64_t width, Rng rng, Options options);
  ShortConv(int64_t channels, int64_t width, Rng rng) : ShortConv(channels, width, rng, Options()) {}
  Var operator()(const Var& x, Tokens& tokens) const;  // [B, T, ...] with `channels` numbers per token

 private:
  bool has_silu_;
  std::unique_ptr<Param> weight_, bias_;
};

// x of bf16 and weights of bf16 give f32: what becomes a gate is not rounded to bf16.
Var wide_linear(const Var& x, Linear& projection);
// Logs of decays, above a floor under which exp() is 0 in every dtype: a gate of 0 stays finite.
Var floored(const Var& log_decay);
// elu(x) + 1, which keeps its digits where it is small: e^x for x below 0, x + 1 above.
Var elu1(const Var& x);
// exp(x) in f64, of which running sums are taken. NotFinite, with which a training has diverged,
// unless all x are in [-600, 600]; on a GPU numbers far outside become NaN.
Var summed_exp(std::string_view what, const Var& x);
// x / sqrt(x . x + 1e-6) of each head.
Var l2_normed(const Var& x_BTHK);
// x / sqrt(mean of squares + eps) of each head or token, without a gain.
Var rms_normed(const Var& x, double eps);
// For mixers whose heads never rotate: their width may be odd under any positions of the model.
MixerArgs unrotated(MixerArgs args);
// Numbers as a vector beside x.
Var vector_like(const Var& x, const std::vector<double>& numbers);

double inverse_root(int64_t width);
// Of training: three times the forward's operations on states [K, V] of every head.
double recurrence_flops(int64_t heads, int64_t key_width, int64_t value_width, bool is_delta = false);
// Error unless heads >= 1 and divides `width`.
void check_heads(std::string_view what, int64_t heads, int64_t width);
// Error unless a short convolution, which may be left out, can span `kernel` tokens.
void check_kernel(std::string_view what, int64_t kernel);

// Initial values of the logs of rates, log U(low, high), and of biases b with softplus(b) = exp(U(log 0.001, log 0.1)), at least 0.0001.
Tensor log_rates(int64_t count, double low, double high, Rng rng);
Tensor step_biases(int64_t count, Rng rng);

}  // namespace weft::recurrent
