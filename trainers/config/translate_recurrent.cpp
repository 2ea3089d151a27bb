#include "trainers/config/translate_recurrent.h"

#include "trainers/config/enum_values.h"

namespace weft::train {

// Fields that are not set are 0: the library fills them in.
GlaOptions recurrent_options(const config::Gla& m) {
  return {.heads = m.heads(), .gate_rank = m.gate_rank(), .kernel = m.kernel(), .clamp_min = m.clamp_min()};
}

DeltaOptions recurrent_options(const config::Delta& m) {
  return {.decay = library_value<config::DeltaDecay, DeltaDecay>(m.decay()),
          .heads = m.heads(),
          .key_heads = m.key_heads(),
          .head_dim = m.head_dim(),
          .value_dim = m.value_dim(),
          .kernel = m.kernel(),
          .has_negative_eigenvalues = m.negative_eigenvalues(),
          .has_safe_gate = m.safe_gate(),
          .norm_eps = m.norm_eps()};
}

LinearAttentionOptions recurrent_options(const config::LinearAttention& m) {
  return {.feature_map = library_value<config::FeatureMap, FeatureMap>(m.feature_map()),
          .heads = m.heads(),
          .head_dim = m.head_dim(),
          .kernel = m.kernel()};
}

RetnetOptions recurrent_options(const config::Retnet& m) { return {.heads = m.heads(), .kernel = m.kernel()}; }

LightningOptions recurrent_options(const config::Lightning& m) {
  return {.decay = library_value<config::LightningDecay, LightningDecay>(m.decay()),
          .heads = m.heads(),
          .kernel = m.kernel()};
}

Mamba2Options recurrent_options(const config::Mamba2& m) {
  return {.heads = m.heads(), .groups = m.groups(), .state_dim = m.state_dim(), .kernel = m.kernel()};
}

HgrnOptions recurrent_options(const config::Hgrn& m) { return {.heads = m.heads(), .kernel = m.kernel()}; }

GatedSlotsOptions recurrent_options(const config::GatedSlots& m) {
  return {.heads = m.heads(), .kv_heads = m.kv_heads(), .slots = m.slots(), .kernel = m.kernel()};
}

AdditiveSlotsOptions recurrent_options(const config::AdditiveSlots& m) {
  return {.kind = library_value<config::SlotKind, SlotKind>(m.kind()),
          .heads = m.heads(),
          .slots = m.slots(),
          .gate_rank = m.gate_rank(),
          .kernel = m.kernel()};
}

FlowOptions recurrent_options(const config::Flow& m) { return {.heads = m.heads()}; }

RalaOptions recurrent_options(const config::Rala& m) { return {.heads = m.heads(), .kernel = m.kernel()}; }

PoolingOptions recurrent_options(const config::Pooling& m) {
  return {.kind = library_value<config::PoolingKind, PoolingKind>(m.kind()), .heads = m.heads()};
}

MirasOptions recurrent_options(const config::Miras& m) {
  return {.kind = library_value<config::MirasKind, MirasKind>(m.kind()),
          .heads = m.heads(),
          .chunk = m.chunk(),
          .kernel = m.kernel()};
}

void set_recurrent(config::Mixer& mixer, const GlaOptions& o) {
  config::Gla& m = *mixer.mutable_gla();
  m.set_heads(o.heads);
  m.set_gate_rank(o.gate_rank);
  m.set_kernel(o.kernel);
  m.set_clamp_min(o.clamp_min);
}

void set_recurrent(config::Mixer& mixer, const DeltaOptions& o) {
  config::Delta& m = *mixer.mutable_delta();
  m.set_decay(schema_value(o.decay));
  m.set_heads(o.heads);
  if (o.key_heads > 0) m.set_key_heads(o.key_heads);
  if (o.head_dim > 0) m.set_head_dim(o.head_dim);
  if (o.value_dim > 0) m.set_value_dim(o.value_dim);
  m.set_kernel(o.kernel);
  m.set_negative_eigenvalues(o.has_negative_eigenvalues);
  m.set_safe_gate(o.has_safe_gate);
  m.set_norm_eps(o.norm_eps);
}

void set_recurrent(config::Mixer& mixer, const LinearAttentionOptions& o) {
  config::LinearAttention& m = *mixer.mutable_linear_attention();
  m.set_feature_map(schema_value(o.feature_map));
  m.set_heads(o.heads);
  if (o.head_dim > 0) m.set_head_dim(o.head_dim);
  m.set_kernel(o.kernel);
}

void set_recurrent(config::Mixer& mixer, const RetnetOptions& o) {
  mixer.mutable_retnet()->set_heads(o.heads);
  mixer.mutable_retnet()->set_kernel(o.kernel);
}

void set_recurrent(config::Mixer& mixer, const LightningOptions& o) {
  mixer.mutable_lightning()->set_decay(schema_value(o.decay));
  mixer.mutable_lightning()->set_heads(o.heads);
  mixer.mutable_lightning()->set_kernel(o.kernel);
}

void set_recurrent(config::Mixer& mixer, const Mamba2Options& o) {
  config::Mamba2& m = *mixer.mutable_mamba2();
  m.set_heads(o.heads);
  m.set_groups(o.groups);
  m.set_state_dim(o.state_dim);
  m.set_kernel(o.kernel);
}

void set_recurrent(config::Mixer& mixer, const HgrnOptions& o) {
  mixer.mutable_hgrn()->set_heads(o.heads);
  mixer.mutable_hgrn()->set_kernel(o.kernel);
}

void set_recurrent(config::Mixer& mixer, const GatedSlotsOptions& o) {
  config::GatedSlots& m = *mixer.mutable_gated_slots();
  m.set_heads(o.heads);
  if (o.kv_heads > 0) m.set_kv_heads(o.kv_heads);
  m.set_slots(o.slots);
  m.set_kernel(o.kernel);
}

void set_recurrent(config::Mixer& mixer, const AdditiveSlotsOptions& o) {
  config::AdditiveSlots& m = *mixer.mutable_additive_slots();
  m.set_kind(schema_value(o.kind));
  m.set_heads(o.heads);
  if (o.slots > 0) m.set_slots(o.slots);
  if (o.gate_rank > 0) m.set_gate_rank(o.gate_rank);
  m.set_kernel(o.kernel);
}

void set_recurrent(config::Mixer& mixer, const FlowOptions& o) { mixer.mutable_flow()->set_heads(o.heads); }

void set_recurrent(config::Mixer& mixer, const RalaOptions& o) {
  mixer.mutable_rala()->set_heads(o.heads);
  mixer.mutable_rala()->set_kernel(o.kernel);
}

void set_recurrent(config::Mixer& mixer, const PoolingOptions& o) {
  mixer.mutable_pooling()->set_kind(schema_value(o.kind));
  mixer.mutable_pooling()->set_heads(o.heads);
}

void set_recurrent(config::Mixer& mixer, const MirasOptions& o) {
  config::Miras& m = *mixer.mutable_miras();
  m.set_kind(schema_value(o.kind));
  m.set_heads(o.heads);
  m.set_chunk(o.chunk);
  m.set_kernel(o.kernel);
}

}  // namespace weft::train
