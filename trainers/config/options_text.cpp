#include "trainers/config/options_text.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>
#include <google/protobuf/text_format.h>

#include "trainers/config/enum_values.h"
#include "trainers/config/scalar.h"
#include "trainers/config/schema.h"

namespace weft::train {

namespace {

namespace pb = google::protobuf;
using config::FieldDescriptor;

// A number that is not set in the options is 0, and not set in the message either.
template <class Message>
void set_sizes(Message& m, const auto& o) {
  if constexpr (requires { m.set_heads(o.heads); }) m.set_heads(o.heads);
  if constexpr (requires { m.set_kv_heads(o.kv_heads); })
    if (o.kv_heads > 0) m.set_kv_heads(o.kv_heads);
  if constexpr (requires { m.set_head_dim(o.head_dim); })
    if (o.head_dim > 0) m.set_head_dim(o.head_dim);
  if constexpr (requires { m.set_window(o.window); })
    if (o.window > 0) m.set_window(o.window);
  if constexpr (requires { m.set_hidden(o.hidden); })
    if (o.hidden > 0) m.set_hidden(o.hidden);
  if constexpr (requires { m.set_experts(o.experts); }) m.set_experts(o.experts), m.set_active(o.active);
  if constexpr (requires { m.set_dense(o.is_dense); }) m.set_dense(o.is_dense);
  if constexpr (requires { m.set_balance_loss(o.balance_loss); }) m.set_balance_loss(o.balance_loss);
}

// Clears what the schema would fill in by itself. Messages stay, empty ones too: that they are there says something.
void clear_presets(pb::Message& message) {
  const pb::Reflection& reflection = *message.GetReflection();
  std::vector<const FieldDescriptor*> fields;
  reflection.ListFields(message, &fields);
  for (const FieldDescriptor* field : fields) {
    if (field->message_type()) {
      for (int i = 0; field->is_repeated() && i < reflection.FieldSize(message, field); ++i)
        clear_presets(*reflection.MutableRepeatedMessage(&message, field, i));
      if (!field->is_repeated()) clear_presets(*reflection.MutableMessage(&message, field));
    } else if (const std::string preset = config::facts(*field).preset; !preset.empty()) {
      std::unique_ptr<pb::Message> other(message.New());
      config::set_scalar(*other, *field, -1, preset, "config schema", field->name());
      if (config::scalar_text(*other, *field, -1) == config::scalar_text(message, *field, -1))
        reflection.ClearField(&message, field);
    }
  }
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

void set(config::Mixer& mixer, const SoftmaxOptions& o) {
  config::Softmax& m = *mixer.mutable_softmax();
  set_sizes(m, o);
  m.set_qk_norm(o.qk_norm == QkNorm::rms);
  m.set_l2_norm(o.qk_norm == QkNorm::l2);
  if (o.softcap > 0) m.set_soft_cap(o.softcap);
  m.set_bias(o.has_bias);
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
}

void set(config::Mixer& mixer, const MlaOptions& o) {
  config::Mla& m = *mixer.mutable_mla();
  set_sizes(m, o);
  if (o.rope_dim > 0) m.set_rope_dim(o.rope_dim);
  if (o.kv_rank > 0) m.set_kv_rank(o.kv_rank);
  if (o.q_rank > 0) m.set_q_rank(o.q_rank);
}
void set(config::Mixer& mixer, const NexusOptions& o) {
  config::Nexus& m = *mixer.mutable_nexus();
  set_sizes(m, o);
  m.set_order(o.order);
  m.set_layer_values(o.has_values_of_layer);
  m.set_qk_norm(o.has_qk_norm);
}
void set(config::Mixer& mixer, const HopfieldOptions& o) {
  set_sizes(*mixer.mutable_hopfield(), o);
  mixer.mutable_hopfield()->set_steps(o.steps);
}
void set(config::Mixer& mixer, const SimplifiedOptions& o) {
  set_sizes(*mixer.mutable_simplified(), o);
  mixer.mutable_simplified()->set_kind(schema_value(o.kind));
}
void set(config::Mixer& mixer, const DeconstructedOptions& o) {
  set_sizes(*mixer.mutable_deconstructed(), o);
  mixer.mutable_deconstructed()->set_kind(schema_value(o.kind));
}
void set(config::Mixer& mixer, const NapOptions& o) {
  set_sizes(*mixer.mutable_nap(), o);
  mixer.mutable_nap()->set_divide_by_root(o.divides_by_root);
}
void set(config::Mixer& mixer, const DualOptions& o) {
  config::Dual& m = *mixer.mutable_dual();
  set_sizes(m, o);
  m.set_relational_heads(o.relational_heads);
  if (o.relations > 0) m.set_relations(o.relations);
  m.set_symbols(o.symbols);
}
void set(config::Mixer& mixer, const TapaOptions& o) {
  config::Tapa& m = *mixer.mutable_tapa();
  set_sizes(m, o);
  m.set_amplitude_share(o.amplitude_share);
  m.set_power(o.power);
}
void set(config::Mixer& mixer, const NeuralOptions& o) { set_sizes(*mixer.mutable_neural(), o); }
void set(config::Mixer& mixer, const RcmhaOptions& o) {
  set_sizes(*mixer.mutable_rcmha(), o);
  mixer.mutable_rcmha()->set_kernel(o.kernel);
}
void set(config::Mixer& mixer, const RelativeBiasOptions& o) {
  config::RelativeBias& m = *mixer.mutable_relative_bias();
  set_sizes(m, o);
  m.set_buckets(o.buckets);
  m.set_max_distance(o.max_distance);
}
void set(config::Mixer& mixer, const MultiTokenOptions& o) {
  config::MultiToken& m = *mixer.mutable_multi_token();
  set_sizes(m, o);
  m.set_query_kernel(o.query_kernel);
  m.set_key_kernel(o.key_kernel);
  m.set_weight_conv(o.has_weight_conv);
  m.set_mix_scores(o.mixes_scores);
  if (o.group > 0) m.set_group(o.group);
  m.set_gate(o.has_gate);
}
void set(config::Mixer& mixer, const MoaOptions& o) {
  config::Moa& m = *mixer.mutable_moa();
  set_sizes(m, o);
  m.set_noise(o.has_noise);
  m.set_z_loss(o.z_loss);
  m.set_detached(o.is_detached);
}
void set(config::Mixer& mixer, const UmoeOptions& o) {
  set_sizes(*mixer.mutable_umoe(), o);
  mixer.mutable_umoe()->set_query_rank(o.query_rank);
}

}  // namespace

config::Mixer mixer_message(const MixerOptions& options) {
  config::Mixer mixer;
  std::visit([&](const auto& o) { set(mixer, o); }, options);
  clear_presets(mixer);
  return mixer;
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

std::string text_of_message(const pb::Message& message) {
  std::string out;
  pb::TextFormat::Printer printer;
  printer.SetSingleLineMode(true);
  printer.SetUseShortRepeatedPrimitives(true);
  printer.PrintToString(message, &out);
  while (out.ends_with(' ')) out.pop_back();
  return out;
}

std::string config_text(const MixerRow& row) {
  constexpr std::string_view kResidual = "residual.";
  for (const ResidualRow& residual : residual_table())
    if (row.name == str(kResidual, residual.name))
      return text_of_message(residual_message(residual.make.target<RoutedResidualOptions>()));
  for (const MixerRow& known : mixer_table())
    if (row.name == known.name) return text_of_message(mixer_message(options_of(known)));
  config::Mixer mixer;
  config::Custom& custom = *mixer.mutable_custom();
  custom.set_type(row.name);
  for (const auto& [key, value] : row.numbers) {
    custom.add_number()->set_key(key);
    custom.mutable_number(custom.number_size() - 1)->set_value(value);
  }
  for (const auto& [key, value] : row.texts) {
    custom.add_text()->set_key(key);
    custom.mutable_text(custom.text_size() - 1)->set_value(value);
  }
  return text_of_message(mixer);
}

}  // namespace weft::train
