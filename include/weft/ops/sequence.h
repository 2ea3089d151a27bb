// Ops that know about tokens: rotary phases, short causal convolution.
#pragma once

#include <optional>
#include <vector>

#include "weft/core/tensor.h"

namespace weft::ops {

// Rotary position embedding (Su et al., 2104.09864). Pair m of a head is rotated by position * base^(-2m/R), where the first
// R = fraction * K of its K channels are rotated.
struct RotaryOptions {
  double base = 10000;
  bool interleaved = false;  // pairs (2m, 2m+1); default half-split pairs (m, m + K/2) as in Llama checkpoints
  double fraction = 1;       // rotates the first fraction * K channels, an even number
  struct Linear {
    double factor = 1;
    friend bool operator==(const Linear&, const Linear&) = default;
  };
  struct Llama3 {
    double factor = 8, low_freq_factor = 1, high_freq_factor = 4;
    int64_t original_context = 8192;
    friend bool operator==(const Llama3&, const Llama3&) = default;
  };
  struct Yarn {  // of the checkpoints of Peng et al., 2309.00071: the ramp runs over the pair's index
    double factor = 4, beta_fast = 32, beta_slow = 1, attention_factor = 0;  // 0: 0.1 ln(factor) + 1
    int64_t original_context = 4096;
    friend bool operator==(const Yarn&, const Yarn&) = default;
  };
  std::optional<Linear> linear = {};
  std::optional<Llama3> llama3 = {};
  std::optional<Yarn> yarn = {};
  friend bool operator==(const RotaryOptions&, const RotaryOptions&) = default;
};

// Angles are computed in f64 from integer positions. The table is f32, on the device of the positions. One table serves all layers of a step.
struct RotaryTable {
  Tensor cos, sin;  // [B, T, rotated / 2]; Yarn's attention factor is multiplied in
  bool interleaved = false;
};
RotaryTable rotary_table(const Tensor& positions_BT, int64_t head_width, const RotaryOptions& options);
std::vector<double> rotary_frequencies(int64_t head_width,
                                       const RotaryOptions& options);  // radians per position, one per pair
Tensor rotary(const Tensor& x_BTHK, const RotaryTable& table);
Tensor rotary_backward(const Tensor& dy_BTHK, const RotaryTable& table);

// Depthwise causal convolution: y[t] = bias + sum_w weight[:, w] * x[t - (W-1) + w]. Tokens before the start count as zero, and so do
// tokens of another document, if documents are given. x [B, T, D], weight [D, W], bias [D] or undefined, documents [B, T] i32 or undefined.
Tensor causal_conv(const Tensor& x_BTD, const Tensor& weight_DW, const Tensor& bias_D, const Tensor& documents_BT);
struct CausalConvGrads {
  Tensor dx, dweight, dbias;
};
CausalConvGrads causal_conv_backward(const Tensor& dy_BTD, const Tensor& x_BTD, const Tensor& weight_DW, bool has_bias,
                                     const Tensor& documents_BT);

}  // namespace weft::ops
