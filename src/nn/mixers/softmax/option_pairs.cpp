// Every two options of softmax attention together.
#include "weft/core/error.h"
#include "weft/nn/mixers.h"

namespace weft {

namespace {

struct Option {
  const char* name;
  void (*set)(SoftmaxOptions&);
};

constexpr Option kOptions[] = {
    {"gqa", [](SoftmaxOptions& o) { o.kv_heads = 2; }},
    {"bias", [](SoftmaxOptions& o) { o.has_bias = true; }},
    {"input_bias", [](SoftmaxOptions& o) { o.has_input_bias = true; }},
    {"window", [](SoftmaxOptions& o) { o.window = 3; }},
    {"soft_cap", [](SoftmaxOptions& o) { o.softcap = 4; }},
    {"dropout", [](SoftmaxOptions& o) { o.dropout = 0.2; }},
    {"alibi", [](SoftmaxOptions& o) { o.position = MixerPosition::alibi; }},
    {"nope", [](SoftmaxOptions& o) { o.position = MixerPosition::none; }},
    {"qk_norm", [](SoftmaxOptions& o) { o.qk_norm = QkNorm::rms; }},
    {"qk_norm_l2", [](SoftmaxOptions& o) { o.qk_norm = QkNorm::l2; }},
    {"cog", [](SoftmaxOptions& o) { o.weights.kind = WeightKind::signed_softmax; }},
    {"sigmoid", [](SoftmaxOptions& o) { o.weights.kind = WeightKind::sigmoid; }},
    {"sigmoid_row", [](SoftmaxOptions& o) { o.weights = {.kind = WeightKind::sigmoid, .bias = SigmoidBias::row}; }},
    {"relu", [](SoftmaxOptions& o) { o.weights.kind = WeightKind::relu; }},
    {"elu1_sum", [](SoftmaxOptions& o) { o.weights = {.kind = WeightKind::elu1, .is_divided_by_sum = true}; }},
    {"taylor2_sum", [](SoftmaxOptions& o) { o.weights = {.kind = WeightKind::taylor2, .is_divided_by_sum = true}; }},
    {"score_shift",
     [](SoftmaxOptions& o) {
       o.has_score_shift = true;
       if (o.weights.kind == WeightKind::softmax) o.weights.kind = WeightKind::sigmoid;
     }},
    {"score_scale", [](SoftmaxOptions& o) { o.has_score_scale = true; }},
    {"temperature",
     [](SoftmaxOptions& o) {
       o.temperature = {true, true, true};
     }},
    {"components", [](SoftmaxOptions& o) { o.components = 2; }},
    {"gate_out", [](SoftmaxOptions& o) { o.gates.push_back({}); }},
    {"gate_out_head", [](SoftmaxOptions& o) { o.gates.push_back({.is_per_head = true}); }},
    {"gate_values", [](SoftmaxOptions& o) { o.gates.push_back({.position = GatePosition::values}); }},
    {"gate_keys", [](SoftmaxOptions& o) { o.gates.push_back({.position = GatePosition::keys}); }},
    {"gate_queries", [](SoftmaxOptions& o) { o.gates.push_back({.position = GatePosition::queries}); }},
    {"gate_layer", [](SoftmaxOptions& o) { o.gates.push_back({.position = GatePosition::layer}); }},
    {"sink_off_by_one", [](SoftmaxOptions& o) { o.sink.kind = SinkKind::off_by_one; }},
    {"sink_logit", [](SoftmaxOptions& o) { o.sink.kind = SinkKind::logit; }},
    {"sink_key", [](SoftmaxOptions& o) { o.sink.kind = SinkKind::key_bias; }},
    {"sink_key_value", [](SoftmaxOptions& o) { o.sink.kind = SinkKind::key_value_bias; }},
    {"sink_value", [](SoftmaxOptions& o) { o.sink.kind = SinkKind::value_bias; }},
    {"affine", [](SoftmaxOptions& o) { o.affine = {.is_on = true, .initial_mean = 0.5}; }},
    {"affine_context",
     [](SoftmaxOptions& o) { o.affine = {.is_on = true, .divides_by_context = true, .initial_mean = 0.5}; }},
    {"head_norm", [](SoftmaxOptions& o) { o.has_head_norm = true; }},
    {"head_mixture", [](SoftmaxOptions& o) { o.head_mixture = {.active = 1, .shared = 2, .path = HeadPath::dense}; }},
    {"out_silu", [](SoftmaxOptions& o) { o.has_out_silu = true; }},
};

// Two settings of one option (two positions, two sinks) are not a pair.
bool is_same_option(std::string_view a, std::string_view b) {
  auto kind = [](std::string_view name) {
    if (name == "alibi" || name == "nope") return std::string_view("position");
    if (name == "input_bias") return std::string_view("bias");
    for (std::string_view weights : {"cog", "sigmoid", "relu", "elu1", "taylor2"})
      if (name.starts_with(weights)) return std::string_view("weights");
    if (name.starts_with("qk_norm")) return std::string_view("qk_norm");
    if (name.starts_with("sink")) return std::string_view("sink");
    if (name.starts_with("affine")) return std::string_view("affine");
    return name;
  };
  return kind(a) == kind(b);
}

}  // namespace

std::span<const MixerRow> softmax_option_pairs() {
  static const std::vector<MixerRow> pairs = [] {
    std::vector<MixerRow> rows;
    for (const Option& first : kOptions)
      for (const Option* second = &first + 1; second != std::end(kOptions); ++second) {
        if (is_same_option(first.name, second->name)) continue;
        SoftmaxOptions options{.heads = 4};
        first.set(options);
        second->set(options);
        rows.push_back({.name = str(first.name, "+", second->name), .make = options});
      }
    return rows;
  }();
  return pairs;
}

}  // namespace weft
