// Points of the softmax mixer.
#include <utility>

#include "src/nn/mixers/rows/rows.h"

namespace weft {

namespace {

// Heads, positions, masks, scores.
Rows plain_rows() {
  return {
      {"mha", SoftmaxOptions{.heads = 4}, "softmax(q k^T / sqrt(K)) v", "1706.03762"},
      {"gqa", SoftmaxOptions{.heads = 4, .kv_heads = 2}, "mha, groups of heads share k and v", "2305.13245"},
      {"mqa", SoftmaxOptions{.heads = 4, .kv_heads = 1}, "mha, all heads share k and v", "1911.02150"},
      {"nope", SoftmaxOptions{.heads = 2, .position = MixerPosition::none}, "mha without rotation", "2305.19466"},
      {"alibi", SoftmaxOptions{.heads = 2, .position = MixerPosition::alibi}, "softmax(s - m_h (i - j)) v",
       "2108.12409"},
      {"window",
       SoftmaxOptions{.heads = 2, .window = 3},
       "mha over the last W tokens",
       "2004.05150",
       "T W",
       {},
       MixerRow::Toy::recent},
      {"soft_cap", SoftmaxOptions{.heads = 2, .softcap = 4}, "softmax(cap tanh(s / cap)) v", "2408.00118"},
      {"dropout", SoftmaxOptions{.heads = 2, .dropout = 0.2}, "dropout(softmax(s)) v", "1706.03762"},
      {"qk_norm", SoftmaxOptions{.heads = 2, .qk_norm = QkNorm::rms}, "mha of RMSNorm(q), RMSNorm(k)", "2505.09388"},
      {"qk_norm_l2", SoftmaxOptions{.heads = 2, .qk_norm = QkNorm::l2}, "softmax(g q/|q| (k/|k|)^T) v", "2010.04245"},
      {"score_scale", SoftmaxOptions{.heads = 2, .has_score_scale = true}, "softmax(g_h s) v", ""},
      {"head_norm", SoftmaxOptions{.heads = 2, .has_head_norm = true}, "RMSNorm(mha) per head", "2505.06708"},
      {"out_silu", SoftmaxOptions{.heads = 2, .has_out_silu = true}, "silu(mha) per head", "2505.06708"},
      {"mea", SoftmaxOptions{.heads = 4, .components = 4, .has_head_norm = true},
       "k_m = sum_n M_nm x W_n, v too; RMSNorm per head", "2601.19611"},
      {"mea_virtual", SoftmaxOptions{.heads = 4, .components = 2, .has_head_norm = true},
       "mea with fewer projected than mixed heads", "2601.19611"},
      {"selective", SoftmaxOptions{.heads = 2, .temperature = {true, true, true}},
       "softmax((1 + b log n + tanh f(q)) s) (1 + tanh f'(v)) v", "2411.12892"},
  };
}

// Qiu et al., 2505.06708: positions, granularities, activations and forms.
Rows gate_rows() {
  auto row = [](const char* name, const GateOptions& gate, std::string_view equation) {
    return MixerRow{name, SoftmaxOptions{.heads = 4, .kv_heads = 2, .gates = {gate}}, equation, "2505.06708"};
  };
  using enum GatePosition;
  return {
      row("gate_out", {}, "mha * sigmoid(x W)"),
      row("gate_out_head", {.is_per_head = true}, "mha * sigmoid(x W)_h"),
      row("gate_out_shared", {.is_head_shared = true}, "mha * mean_h sigmoid(x W)"),
      row("gate_out_constant", {.reads_input = false}, "mha * sigmoid(b)"),
      row("gate_out_silu", {.activation = GateActivation::silu}, "mha * silu(x W)"),
      row("gate_out_shifted", {.activation = GateActivation::shifted_sigmoid}, "mha * (0.5 + 0.5 sigmoid(x W))"),
      row("gate_out_add_silu", {.activation = GateActivation::silu, .is_additive = true}, "mha + silu(x W)"),
      row("gate_out_add", {.activation = GateActivation::identity, .is_additive = true}, "mha + x W"),
      row("gate_values", {.position = values}, "v * sigmoid(x W)"),
      row("gate_values_head", {.position = values, .is_per_head = true}, "v * sigmoid(x W)_g"),
      row("gate_values_shared", {.position = values, .is_head_shared = true}, "v * mean_g sigmoid(x W)"),
      row("gate_keys", {.position = keys}, "k * sigmoid(x W)"),
      row("gate_keys_head", {.position = keys, .is_per_head = true}, "k * sigmoid(x W)_g"),
      row("gate_queries", {.position = queries}, "q * sigmoid(x W)"),
      row("gate_queries_head", {.position = queries, .is_per_head = true}, "q * sigmoid(x W)_h"),
      row("gate_layer", {.position = layer}, "(mha W_O) * sigmoid(x W)"),
  };
}

Rows sink_rows() {
  auto row = [](const char* name, const SinkOptions& sink, std::string_view equation, std::string_view source) {
    return MixerRow{name, SoftmaxOptions{.heads = 4, .kv_heads = 2, .sink = sink}, equation, source};
  };
  return {
      row("sink_off_by_one", {SinkKind::off_by_one}, "e^s / (1 + sum e^s)", "2410.10781"),
      row("sink_logit", {SinkKind::logit}, "e^s / (e^b_h + sum e^s)", "2508.10925"),
      row("sink_logit_shared", {SinkKind::logit, true}, "e^s / (e^b + sum e^s)", "2410.10781"),
      row("sink_key", {SinkKind::key_bias}, "a key k*_h with value 0", "2410.10781"),
      row("sink_key_shared", {SinkKind::key_bias, true}, "a key k* with value 0", "2410.10781"),
      row("sink_key_value", {SinkKind::key_value_bias}, "a key k*_h with value v*_h", "2410.10781"),
      row("sink_value", {SinkKind::value_bias}, "mha + v*_h", "2410.10781"),
  };
}

Rows weight_rows() {
  auto row = [](const char* name, const WeightOptions& weights, std::string_view equation, std::string_view source) {
    return MixerRow{name, SoftmaxOptions{.heads = 4, .kv_heads = 2, .weights = weights}, equation, source};
  };
  using enum WeightKind;
  return {
      row("cog", {.kind = signed_softmax}, "sign(s) exp(|s|) / sum exp(|s|)", "2411.07176"),
      row("sigmoid", {.kind = sigmoid}, "sigmoid(s - log T) v", "2409.04431"),
      {"sigmoid_shift",
       SoftmaxOptions{
           .heads = 4, .kv_heads = 2, .weights = {.kind = sigmoid, .bias = SigmoidBias::none}, .has_score_shift = true},
       "sigmoid(s + b_h) v", "2409.04431"},
      row("sigmoid_row", {.kind = sigmoid, .bias = SigmoidBias::row}, "sigmoid(s - log N_i) v", "2409.04431"),
      row("sigmoid_bare", {.kind = sigmoid, .bias = SigmoidBias::none}, "sigmoid(s) v", "2410.10781"),
      row("sigmoid_sum", {.kind = sigmoid, .bias = SigmoidBias::none, .is_divided_by_sum = true},
          "sigmoid(s) / sum sigmoid(s)", "2410.10781"),
      row("relu", {.kind = relu}, "max(s, 0) / N_i v", "2309.08586"),
      row("relu_bare", {.kind = relu, .power = 0}, "max(s, 0) v", "2309.08586"),
      row("elu1", {.kind = elu1}, "(elu(s) + 1) v", "2410.10781"),
      row("approximate", {.kind = taylor2, .is_divided_by_sum = true}, "(1 + s + s^2/2) / sum (1 + s + s^2/2)",
          "2510.11602"),
      row("elu1_sum", {.kind = elu1, .is_divided_by_sum = true}, "(elu(s) + 1) / sum (elu(s) + 1)", "2410.10781"),
  };
}

Rows affine_rows() {
  auto row = [](const char* name, SoftmaxOptions options, std::string_view equation) {
    return MixerRow{name, std::move(options), equation, "2602.23057"};
  };
  AffineOptions visible{.is_on = true, .initial_mean = 0.5}, context = visible, smooth = visible;
  context.divides_by_context = true;
  smooth.has_sigmoid = true;
  return {
      row("affine", {.heads = 4, .kv_heads = 2, .affine = visible}, "(a P + (m - a) / N_i) v, a = clip(x W)"),
      row("affine_context", {.heads = 2, .affine = context}, "(a P + (m - a) / T) v"),
      row("affine_sigmoid", {.heads = 2, .affine = smooth}, "affine with a = sigmoid(x W)"),
      row("affine_gate", {.heads = 2, .gates = {{}}, .affine = visible}, "affine * sigmoid(x W)"),
  };
}

}  // namespace

Rows softmax_rows() {
  Rows all;
  for (const Rows& part : {plain_rows(), weight_rows(), gate_rows(), sink_rows(), affine_rows()})
    all.insert(all.end(), part.begin(), part.end());
  return all;
}

}  // namespace weft
