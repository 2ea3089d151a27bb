// Every differentiable function with small inputs: the table that the gradient check and the comparison of devices walk.
// To add a function: one row. Constants inside a row are made on the default device.
#pragma once

#include <cmath>
#include <functional>
#include <vector>

#include "tests/support/random.h"
#include "weft/autograd/attention_merge.h"
#include "weft/autograd/functions.h"
#include "weft/autograd/recompute.h"
#include "weft/ops/elementwise.h"

namespace weft::test {

using In = std::span<const Var>;

struct Row {
  const char* name;
  std::vector<Shape> shapes;
  std::function<Var(In)> f;
  enum Domain { any, positive, off_zero } domain = any;  // off_zero: |x| > 0.05, for functions with a kink
};

inline Tensor here(const Tensor& t) { return ops::to(t, default_device()); }
inline Tensor ints(std::initializer_list<int32_t> values, const Shape& shape) {
  return here(Tensor::from<int32_t>(values, shape));
}
inline Tensor longs(std::initializer_list<int64_t> values, const Shape& shape) {
  return here(Tensor::from<int64_t>(values, shape));
}

inline Tensor positions(int64_t batch, int64_t tokens) {
  Tensor p = Tensor::empty({batch, tokens}, kI32, Device::cpu());
  for (int64_t i = 0; i < batch * tokens; ++i) p.mutable_data<int32_t>()[i] = static_cast<int32_t>(i % tokens);
  return here(p);
}

// Biases of scores are f32 or f64.
inline Var not_bf16(const Var& bias) { return bias.value().dtype() == kBF16 ? cast(bias, kF32) : bias; }

inline Var both(std::array<Var, 2> pair) {
  return cast(sum_all(pair[0] * pair[0]), pair[1].value().dtype()) + sum_all(square(pair[1]));
}

inline const int kBoth[] = {0, 2};
inline const int64_t kSizes[] = {2, 3};

inline std::vector<Row> elementwise_rows() {
  return {
      {"add", {{3, 4}, {4}}, [](In in) { return in[0] + in[1]; }},
      {"sub", {{3, 1}, {2, 1, 4}}, [](In in) { return in[0] - in[1]; }},
      {"mul", {{3, 4}, {3, 1}}, [](In in) { return in[0] * in[1]; }},
      {"mul_same", {{5}}, [](In in) { return in[0] * in[0]; }},
      {"div", {{3, 4}, {4}}, [](In in) { return in[0] / in[1]; }, Row::off_zero},
      {"maximum", {{3, 4}, {4}}, [](In in) { return maximum(in[0], in[1]); }},
      {"minimum", {{3, 4}, {3, 1}}, [](In in) { return minimum(in[0], in[1]); }},
      {"where",
       {{2, 2}, {2}},
       [](In in) {
         return where(here(Tensor::from<bool>({true, false, false, true}, {2, 2})), in[0], in[1]);
       }},
      {"where_number", {{2, 3}}, [](In in) { return where(greater(in[0], 0), square(in[0]), -1); }, Row::off_zero},
      {"where_number_first", {{1, 3}}, [](In in) { return where(less(positions(4, 3), 2), 2, in[0]); }},
      {"masked_fill",
       {{2, 3}},
       [](In in) { return masked_fill(square(in[0]), less_equal(in[0], 0), 3); },
       Row::off_zero},
      {"clamp", {{37}}, [](In in) { return clamp(in[0], -0.4321, 0.8765); }},
      {"clamp_min", {{7}}, [](In in) { return clamp_min(in[0], 0.1234) + maximum(in[0], -0.3123); }},
      {"clamp_max", {{7}}, [](In in) { return clamp_max(in[0], 0.1234) + minimum(in[0], -0.3123); }},
      {"pow_number", {{7}}, [](In in) { return pow(in[0], -1.7) + pow(in[0], 0); }, Row::positive},
      {"pow_whole", {{7}}, [](In in) { return pow(in[0], 3) + pow(in[0], 2) + pow(in[0], 1); }},
      {"pow", {{3, 4}, {3, 1}}, [](In in) { return pow(in[0], in[1]); }, Row::positive},
      {"numbers", {{7}}, [](In in) { return 2.0 / in[0] + (1.0 - in[0]) / 3.0 + (0.5 + in[0]); }, Row::off_zero},
      {"scale", {{7}}, [](In in) { return in[0] * -2.5 + 1.0; }},
      {"neg", {{7}}, [](In in) { return neg(in[0]); }},
      {"abs", {{7}}, [](In in) { return abs(in[0]); }, Row::off_zero},
      {"square", {{7}}, [](In in) { return square(in[0]); }},
      {"sqrt", {{7}}, [](In in) { return sqrt(in[0]); }, Row::positive},
      {"rsqrt", {{7}}, [](In in) { return rsqrt(in[0]); }, Row::positive},
      {"exp", {{7}}, [](In in) { return exp(in[0]); }},
      {"log", {{7}}, [](In in) { return log(in[0]); }, Row::positive},
      {"sin", {{7}}, [](In in) { return sin(in[0]); }},
      {"cos", {{7}}, [](In in) { return cos(in[0]); }},
      {"tanh", {{7}}, [](In in) { return tanh(in[0]); }},
      {"sigmoid", {{7}}, [](In in) { return sigmoid(in[0]); }},
      {"log_sigmoid", {{7}}, [](In in) { return log_sigmoid(in[0]); }},
      {"softplus", {{7}}, [](In in) { return softplus(in[0]); }},
      {"relu", {{7}}, [](In in) { return relu(in[0]); }, Row::off_zero},
      {"elu", {{7}}, [](In in) { return elu(in[0]); }, Row::off_zero},
      {"silu", {{7}}, [](In in) { return silu(in[0]); }},
      {"gelu", {{7}}, [](In in) { return gelu(in[0]); }},
      {"gelu_tanh", {{7}}, [](In in) { return gelu_tanh(in[0]); }},
      {"softcap", {{7}}, [](In in) { return softcap(in[0], 2.0); }},
      {"swiglu", {{3, 5}, {3, 5}}, [](In in) { return swiglu(in[0], in[1]); }},
      {"dropout", {{2, 3, 4}}, [](In in) { return dropout(in[0], positions(2, 3), 0.4, Rng(5)); }},
  };
}

inline std::vector<Row> shape_rows() {
  return {
      {"reshape",
       {{3, 4}},
       [](In in) {
         return reshape(transpose(in[0], 0, 1), {2, 6}) * Var(Tensor::full({2, 6}, 2, in[0].value().dtype()));
       }},
      {"permute",
       {{2, 3, 4}},
       [](In in) {
         return permute(in[0], {2, 0, 1});
       }},
      {"transpose", {{2, 3, 4}}, [](In in) { return transpose(in[0], 0, -1); }},
      {"slice", {{5, 6}}, [](In in) { return slice(in[0], 1, 1, 6, 2); }},
      {"select", {{5, 6}}, [](In in) { return select(in[0], 0, -2); }},
      {"expand",
       {{3, 1}},
       [](In in) {
         return expand(in[0], {2, 3, 4});
       }},
      {"unsqueeze", {{3, 2}}, [](In in) { return squeeze(unsqueeze(in[0], 1), 1); }},
      {"split",
       {{2, 5}},
       [](In in) {
         auto p = split(in[0], kSizes, 1);
         return sum_all(square(p[0])) + sum_all(exp(p[1]));
       }},
      {"split_unused", {{2, 5}}, [](In in) { return exp(split(in[0], kSizes, 1)[1]); }},
      {"concatenate", {{2, 3}, {2, 1}}, [](In in) { return concatenate(in, 1); }},
      {"chunk",
       {{2, 5}},
       [](In in) {
         auto p = chunk(in[0], 2, -1);
         return sum_all(square(p[0])) + sum_all(exp(p[1]));
       }},
      {"stack", {{2, 3}, {2, 3}}, [](In in) { return stack(in, 1); }},
      {"stack_last", {{2, 3}, {2, 3}, {2, 3}}, [](In in) { return stack(in, -1); }},
      {"stack_numbers", {{}, {}}, [](In in) { return stack(in, 0); }},
      {"mean_all", {{2, 3, 4}}, [](In in) { return mean_all(in[0]); }},
      {"min", {{4, 5}}, [](In in) { return min(in[0], -2); }},
      {"min_keep", {{4, 5}}, [](In in) { return min(in[0], 1, true); }},
      {"variance", {{3, 5}}, [](In in) { return variance(in[0], 0, 1) + variance(in[0], 0, 0); }},
      {"norm", {{3, 5}}, [](In in) { return norm(in[0], 1, true) * norm(in[0], 0); }},
      {"sum", {{2, 3, 4}}, [](In in) { return sum(in[0], kBoth); }},
      {"mean", {{2, 3, 4}}, [](In in) { return mean(in[0], 1, true); }},
      {"sum_all", {{2, 3}}, [](In in) { return sum_all(in[0]); }},
      {"max", {{4, 5}}, [](In in) { return max(in[0], 1); }},
      {"max_keep", {{4, 5}}, [](In in) { return max(in[0], 0, true); }},
      {"cumsum", {{3, 5}}, [](In in) { return cumsum(in[0], 1); }},
      {"cumsum_segments",
       {{1, 5, 2}},
       [](In in) {
         return cumsum(in[0], 1, {.segments = ints({1, 1, 2, 2, 2}, {1, 5})});
       }},
      {"cumsum_window",
       {{1, 7, 2}},
       [](In in) {
         return cumsum(in[0], 1, {.segments = ints({1, 1, 1, 1, 2, 2, 2}, {1, 7}), .window = 3});
       }},
      {"cumsum_window_reverse", {{3, 5}}, [](In in) { return cumsum(in[0], 1, {.reverse = true, .window = 2}); }},
      {"cumsum_reverse", {{3, 5}}, [](In in) { return cumsum(in[0], 0, {.reverse = true, .exclusive = true}); }},
      {"embedding",
       {{5, 3}},
       [](In in) {
         return embedding(in[0], ints({4, 0, 4, 2}, {2, 2}));
       }},
      {"gather",
       {{3, 4}},
       [](In in) {
         return gather(in[0], 1, longs({0, 0, 3, 1, 2, 2}, {3, 2}));
       }},
      {"scatter_add",
       {{3, 2}},
       [](In in) {
         return scatter_add({3, 4}, 1, longs({0, 0, 3, 1, 2, 2}, {3, 2}), in[0]);
       }},
      {"topk", {{3, 5}}, [](In in) { return topk(in[0], 2).values; }},
  };
}

inline std::vector<Row> layer_rows() {
  return {
      {"matmul", {{2, 3, 4}, {4, 5}}, [](In in) { return matmul(in[0], in[1]); }},
      {"matmul_ta", {{2, 4, 3}, {2, 4, 5}}, [](In in) { return matmul(in[0], in[1], {.transpose_a = true}); }},
      {"matmul_tb", {{3, 4}, {2, 5, 4}}, [](In in) { return matmul(in[0], in[1], {.transpose_b = true}); }},
      {"matmul_tab",
       {{4, 3}, {5, 4}},
       [](In in) { return matmul(in[0], in[1], {.transpose_a = true, .transpose_b = true}); }},
      {"linear", {{2, 3, 4}, {5, 4}, {5}}, [](In in) { return linear(in[0], in[1], in[2]); }},
      {"gelu_mlp",
       {{2, 3, 4}, {8, 4}, {8}, {5, 8}, {5}},
       [](In in) { return gelu_mlp(in[0], in[1], in[2], in[3], in[4]); }},
      {"gelu_mlp_no_bias",
       {{3, 4}, {16, 4}, {8, 16}},
       [](In in) { return gelu_mlp(in[0], in[1], Var(), in[2], Var()); }},
      {"linear_no_bias", {{3, 4}, {5, 4}}, [](In in) { return linear(in[0], in[1]); }},
      {"rms_norm", {{3, 7}, {7}}, [](In in) { return rms_norm(in[0], in[1], 1e-6); }},
      {"layer_norm", {{3, 7}, {7}, {7}}, [](In in) { return layer_norm(in[0], in[1], in[2], 1e-5); }},
      {"add_rms_norm_both",
       {{3, 7}, {3, 7}, {7}},
       [](In in) {
         auto [sum, y] = add_rms_norm(in[0], in[1], in[2], 1e-6);
         return sum * y;
       }},
      {"add_rms_norm", {{3, 7}, {3, 7}, {7}}, [](In in) { return add_rms_norm(in[0], in[1], in[2], 1e-6)[1]; }},
      {"add_layer_norm_both",
       {{3, 7}, {3, 7}, {7}, {7}},
       [](In in) {
         auto [sum, y] = add_layer_norm(in[0], in[1], in[2], in[3], 1e-5);
         return sum * y;
       }},
      {"add_layer_norm",
       {{3, 7}, {3, 7}, {7}, {7}},
       [](In in) { return add_layer_norm(in[0], in[1], in[2], in[3], 1e-5)[1]; }},
      {"softmax", {{3, 7}}, [](In in) { return softmax(in[0]); }},
      {"logsumexp", {{3, 7}}, [](In in) { return logsumexp(in[0]); }},
      {"log_softmax", {{3, 7}}, [](In in) { return log_softmax(in[0]); }},
      {"softmax_columns", {{2, 5, 3}}, [](In in) { return softmax(in[0], 1); }},
      {"log_softmax_columns", {{5, 3}}, [](In in) { return log_softmax(in[0], -2); }},
      {"logsumexp_columns", {{2, 5, 3}}, [](In in) { return logsumexp(in[0], 1); }},
      {"rotary", {{2, 3, 2, 6}}, [](In in) { return rotary(in[0], ops::rotary_table(positions(2, 3), 6, {})); }},
      {"rotary_interleaved",
       {{1, 3, 2, 8}},
       [](In in) {
         return rotary(in[0], ops::rotary_table(positions(1, 3), 8, {.interleaved = true, .fraction = 0.5}));
       }},
      {"causal_conv",
       {{2, 5, 3}, {3, 4}, {3}},
       [](In in) {
         return causal_conv(in[0], in[1], in[2], ints({0, 0, 1, 1, 1, 0, 0, 0, 0, 0}, {2, 5}));
       }},
      {"attend",
       {{1, 6, 4, 8}, {1, 6, 2, 8}, {1, 6, 2, 4}},
       [](In in) { return both(attend(in[0], in[1], in[2], {positions(1, 6)}, {positions(1, 6)}, {})); }},
      {"attend_window_softcap",
       {{2, 7, 2, 4}, {2, 7, 1, 4}, {2, 7, 1, 4}},
       [](In in) {
         return both(attend(in[0], in[1], in[2], {positions(2, 7)}, {positions(2, 7)},
                            {.mask = {.window = 3}, .score = {.softcap = 2}}));
       }},
      {"attend_sum",
       {{1, 5, 2, 4}, {1, 5, 2, 4}, {1, 5, 2, 3}},
       [](In in) {
         return attend(in[0], in[1], in[2], {positions(1, 5)}, {positions(1, 5)},
                       {.normaliser = ops::Normaliser::sum})[0];
       }},
      {"attend_bias",
       {{1, 6, 4, 8}, {1, 6, 2, 8}, {1, 6, 2, 4}, {1, 6, 4}, {1, 6, 2}},
       [](In in) {
         return both(attend(in[0], in[1], in[2], {positions(1, 6)}, {positions(1, 6)}, {.score = {.softcap = 2}},
                            {not_bf16(in[3]), not_bf16(in[4])}));
       }},
      {"attend_bias_signed",
       {{2, 5, 2, 4}, {2, 5, 1, 4}, {2, 5, 1, 4}, {2, 5, 2}},
       [](In in) {
         return both(attend(in[0], in[1], in[2], {positions(2, 5)}, {positions(2, 5)},
                            {.normaliser = ops::Normaliser::signed_softmax}, {.key = not_bf16(in[3])}));
       }},
      {"attend_dropout",
       {{1, 6, 2, 4}, {1, 6, 2, 4}, {1, 6, 2, 4}},
       [](In in) {
         return attend(in[0], in[1], in[2], {positions(1, 6)}, {positions(1, 6)},
                       {.dropout = 0.3, .dropout_rng = Rng(9)})[0];
       }},
      {"merge",
       {{2, 3, 2, 4}, {2, 3, 2}, {2, 3, 2, 4}, {2, 3, 2}},
       [](In in) {
         return both(merge({in[0], not_bf16(in[1])}, {in[2], not_bf16(in[3])}));
       }},
      {"cross_entropy",
       {{4, 5}},
       [](In in) {
         return cross_entropy(in[0], ints({1, -1, 4, 0}, {4}));
       }},
      {"cross_entropy_mean",
       {{4, 5}},
       [](In in) {
         return cross_entropy(in[0], ints({1, -1, 4, 0}, {4}), {.reduction = Reduction::mean, .label_smoothing = 0.2});
       }},
      {"cross_entropy_weighted",
       {{4, 5}},
       [](In in) {
         Tensor weights = here(Tensor::from<float>({0.5, 1, 0, 2, 0.25}, {5}));
         if (in[0].dtype() == kF64) weights = ops::cast(weights, kF64);
         return cross_entropy(in[0], ints({1, -1, 4, 0}, {4}),
                              {.reduction = Reduction::sum, .label_smoothing = 0.2, .class_weights = weights});
       }},
      {"kl_divergence", {{2, 3, 7}, {2, 3, 7}}, [](In in) { return kl_divergence(in[0], in[1], Reduction::none); }},
      {"kl_divergence_mean", {{3, 7}, {3, 7}}, [](In in) { return kl_divergence(in[0], in[1], Reduction::mean); }},
      {"mse_loss", {{3, 4}, {3, 4}}, [](In in) { return mse_loss(in[0], in[1], Reduction::none); }},
      {"mse_loss_mean", {{3, 4}, {3, 4}}, [](In in) { return mse_loss(in[0], in[1], Reduction::mean); }},
      {"bce_with_logits", {{3, 4}, {3, 4}}, [](In in) { return bce_with_logits(in[0], in[1], Reduction::none); }},
      {"bce_with_logits_sum", {{3, 4}, {3, 4}}, [](In in) { return bce_with_logits(in[0], in[1], Reduction::sum); }},
      {"linear_cross_entropy",
       {{4, 3}, {5, 3}},
       [](In in) {
         return linear_cross_entropy(in[0], in[1], ints({1, -1, 4, 0}, {4}), {.factor = 0.5, .softcap = 3, .chunk = 3})
                    .loss *
                2.0;
       }},
      {"recompute",
       {{3, 4}, {4}},
       [](In in) { return recompute([](In x) { return std::vector<Var>{tanh(x[0] * x[1])}; }, in)[0]; }},
  };
}

// Normal numbers in the row's domain, in float64 on the CPU.
inline std::vector<Tensor> inputs_of(const Row& row) {
  std::vector<Tensor> inputs;
  for (size_t i = 0; i < row.shapes.size(); ++i) {
    Tensor t = random_normal(row.shapes[i], str(row.name, i), kF64);
    auto* x = t.mutable_data<double>();
    for (int64_t j = 0; j < t.num_elements(); ++j) {
      if (row.domain == Row::positive) x[j] = std::abs(x[j]) + 0.1;
      if (row.domain == Row::off_zero) x[j] += x[j] < 0 ? -0.1 : 0.1;
    }
    inputs.push_back(t);
  }
  return inputs;
}

}  // namespace weft::test
