// Softmax attention and residual streams: messages as option structs, and back.
#include "trainers/config/enum_values.h"
#include "trainers/config/options_text.h"
#include "trainers/config/translate.h"

namespace weft::train {

namespace {

GateOptions gate_options(const config::Gate& gate) {
  return {.position = library_value<config::GatePosition, GatePosition>(gate.position()),
          .activation = library_value<config::GateActivation, GateActivation>(gate.activation()),
          .is_per_head = gate.per_head(),
          .is_head_shared = gate.head_shared(),
          .is_additive = gate.additive(),
          .reads_input = gate.reads_input()};
}

WeightOptions weight_options(const config::Weights& weights) {
  return {.kind = library_value<config::WeightKind, WeightKind>(weights.kind()),
          .keeps_ends = weights.keep_ends(),
          .bias = library_value<config::SigmoidBias, SigmoidBias>(weights.bias()),
          .power = weights.power(),
          .is_divided_by_sum = weights.divide_by_sum()};
}

SinkOptions sink_options(const config::Sink& sink) {
  return {.kind = library_value<config::SinkKind, SinkKind>(sink.kind()), .is_head_shared = sink.head_shared()};
}

HeadMixtureOptions mixture_options(const config::HeadMixture& mixture) {
  return {.active = mixture.active(),
          .shared = mixture.shared(),
          .has_paper_scale = mixture.paper_scale(),
          .reads_query_norm = mixture.query_norm(),
          .path = library_value<config::HeadPath, HeadPath>(mixture.path()),
          .balance_loss = mixture.balance_loss(),
          .has_running_load = mixture.running_load()};
}

void set_weights(config::Softmax& softmax, const WeightOptions& o) {
  config::Weights m;
  m.set_kind(schema_value(o.kind));
  m.set_keep_ends(o.keeps_ends);
  m.set_bias(schema_value(o.bias));
  m.set_power(o.power);
  m.set_divide_by_sum(o.is_divided_by_sum);
  clear_presets(m);
  if (m.ByteSizeLong() > 0) *softmax.mutable_weights() = m;
}

void set_gate(config::Gate& m, const GateOptions& o) {
  m.set_position(schema_value(o.position));
  m.set_activation(schema_value(o.activation));
  m.set_per_head(o.is_per_head);
  m.set_head_shared(o.is_head_shared);
  m.set_additive(o.is_additive);
  m.set_reads_input(o.reads_input);
}

void set_mixture(config::HeadMixture& m, const HeadMixtureOptions& o) {
  m.set_active(o.active);
  m.set_shared(o.shared);
  m.set_paper_scale(o.has_paper_scale);
  m.set_query_norm(o.reads_query_norm);
  m.set_path(schema_value(o.path));
  m.set_balance_loss(o.balance_loss);
  m.set_running_load(o.has_running_load);
}

}  // namespace

SoftmaxOptions softmax_options(const config::Softmax& softmax) {
  SoftmaxOptions o{.heads = softmax.heads(),
                   .kv_heads = softmax.kv_heads(),
                   .head_dim = softmax.head_dim(),
                   .qk_norm = softmax.l2_norm()   ? QkNorm::l2
                              : softmax.qk_norm() ? QkNorm::rms
                                                  : QkNorm::none,
                   .window = softmax.window(),
                   .softcap = softmax.soft_cap(),
                   .has_bias = softmax.bias(),
                   .has_input_bias = softmax.input_bias(),
                   .dropout = softmax.dropout(),
                   .position = library_value<config::MixerPosition, MixerPosition>(softmax.position()),
                   .has_score_scale = softmax.score_scale(),
                   .has_score_shift = softmax.score_shift(),
                   .components = softmax.components(),
                   .has_head_norm = softmax.head_norm(),
                   .has_out_silu = softmax.out_silu()};
  if (softmax.has_temperature())
    o.temperature = {.has_position = softmax.temperature().position(),
                     .has_token = softmax.temperature().token(),
                     .scales_values = softmax.temperature().values()};
  if (softmax.has_weights()) o.weights = weight_options(softmax.weights());
  for (const config::Gate& gate : softmax.gate()) o.gates.push_back(gate_options(gate));
  if (softmax.has_sink()) o.sink = sink_options(softmax.sink());
  if (softmax.has_head_mixture()) o.head_mixture = mixture_options(softmax.head_mixture());
  if (softmax.has_affine())
    o.affine = {.is_on = true,
                .has_sigmoid = softmax.affine().sigmoid(),
                .divides_by_context = softmax.affine().context(),
                .decay = softmax.affine().decay(),
                .initial_mean = softmax.affine().initial_mean()};
  return o;
}

config::Softmax softmax_message(const SoftmaxOptions& o) {
  config::Softmax m;
  m.set_heads(o.heads);
  if (o.kv_heads > 0) m.set_kv_heads(o.kv_heads);
  if (o.head_dim > 0) m.set_head_dim(o.head_dim);
  if (o.window > 0) m.set_window(o.window);
  m.set_qk_norm(o.qk_norm == QkNorm::rms);
  m.set_l2_norm(o.qk_norm == QkNorm::l2);
  if (o.softcap > 0) m.set_soft_cap(o.softcap);
  m.set_bias(o.has_bias);
  m.set_input_bias(o.has_input_bias);
  m.set_dropout(o.dropout);
  m.set_position(schema_value(o.position));
  m.set_score_scale(o.has_score_scale);
  m.set_score_shift(o.has_score_shift);
  if (o.temperature.is_on()) {
    m.mutable_temperature()->set_position(o.temperature.has_position);
    m.mutable_temperature()->set_token(o.temperature.has_token);
    m.mutable_temperature()->set_values(o.temperature.scales_values);
  }
  if (o.components > 0) m.set_components(o.components);
  for (const GateOptions& gate : o.gates) set_gate(*m.add_gate(), gate);
  if (o.sink.kind != SinkKind::none) {
    m.mutable_sink()->set_kind(schema_value(o.sink.kind));
    m.mutable_sink()->set_head_shared(o.sink.is_head_shared);
  }
  if (o.affine.is_on) {
    m.mutable_affine()->set_sigmoid(o.affine.has_sigmoid);
    m.mutable_affine()->set_context(o.affine.divides_by_context);
    m.mutable_affine()->set_decay(o.affine.decay);
    m.mutable_affine()->set_initial_mean(o.affine.initial_mean);
  }
  m.set_head_norm(o.has_head_norm);
  m.set_out_silu(o.has_out_silu);
  set_weights(m, o.weights);
  if (o.head_mixture.active > 0) set_mixture(*m.mutable_head_mixture(), o.head_mixture);
  return m;
}

RoutedResidualOptions residual_options(const config::Residual& residual) {
  const bool is_delta = residual.has_delta();
  const config::RoutedResidual& routed = is_delta ? residual.delta() : residual.attention();
  return {.sources = routed.states()       ? ResidualSources::states
                     : routed.has_blocks() ? ResidualSources::block_sums
                                           : ResidualSources::outputs,
          .combine = is_delta ? ResidualCombine::add : ResidualCombine::replace,
          .weights = library_value<config::ResidualWeights, ResidualWeights>(routed.weights()),
          .blocks = routed.blocks(),
          .window = routed.window(),
          .has_key_norm = routed.key_norm(),
          .has_key_gain = routed.key_gain(),
          .has_null_source = routed.null_source(),
          .query_std = routed.query_std()};
}

config::Residual residual_message(const RoutedResidualOptions* o) {
  config::Residual residual;
  if (!o) {
    residual.mutable_standard();
    return residual;
  }
  config::RoutedResidual& m =
      o->combine == ResidualCombine::add ? *residual.mutable_delta() : *residual.mutable_attention();
  if (o->sources == ResidualSources::block_sums) m.set_blocks(o->blocks);
  m.set_states(o->sources == ResidualSources::states);
  if (o->window > 0) m.set_window(o->window);
  m.set_weights(schema_value(o->weights));
  m.set_key_norm(o->has_key_norm);
  m.set_key_gain(o->has_key_gain);
  m.set_null_source(o->has_null_source);
  m.set_query_std(o->query_std);
  clear_presets(residual);
  return residual;
}

}  // namespace weft::train
