#include "trainers/config/translate_hybrid.h"

#include "trainers/config/enum_values.h"

namespace weft::train {

// Fields that are not set are 0: the library fills them in.
NatsOptions hybrid_options(const config::Nats& m) {
  return {.heads = m.heads(),
          .kv_heads = m.kv_heads(),
          .head_dim = m.head_dim(),
          .window = m.window(),
          .temperature = m.temperature(),
          .end_temperature = m.end_temperature(),
          .global_bias = m.global_bias(),
          .global_loss = m.global_loss()};
}

NatsLinearOptions hybrid_options(const config::NatsLinear& m) {
  return {.heads = m.heads(),
          .head_dim = m.head_dim(),
          .value_dim = m.value_dim(),
          .softmax_heads = m.softmax_heads(),
          .chunk = m.chunk(),
          .kernel = m.kernel()};
}

HySparseOptions hybrid_options(const config::HySparse& m) {
  return {.heads = m.heads(),
          .kv_heads = m.kv_heads(),
          .head_dim = m.head_dim(),
          .sparse = m.sparse(),
          .block = m.block(),
          .blocks = m.blocks(),
          .window = m.window()};
}

FluxOptions hybrid_options(const config::Flux& m) {
  return {.heads = m.heads(),
          .kv_heads = m.kv_heads(),
          .head_dim = m.head_dim(),
          .window = m.window(),
          .prompt = m.prompt(),
          .hidden = m.hidden(),
          .full_loss = m.full_loss(),
          .full_target = m.full_target()};
}

ReplacementOptions hybrid_options(const config::Replacement& m) {
  return {.kind = library_value<config::ReplacementKind, ReplacementKind>(m.kind()),
          .heads = m.heads(),
          .kv_heads = m.kv_heads(),
          .head_dim = m.head_dim(),
          .window = m.window(),
          .position = library_value<config::MixerPosition, MixerPosition>(m.position())};
}

namespace {

template <class Message>
void set_heads(Message& m, const auto& o) {
  m.set_heads(o.heads);
  if (o.kv_heads > 0) m.set_kv_heads(o.kv_heads);
  if (o.head_dim > 0) m.set_head_dim(o.head_dim);
  m.set_window(o.window);
}

}  // namespace

void set_hybrid(config::Mixer& mixer, const NatsOptions& o) {
  config::Nats& m = *mixer.mutable_nats();
  set_heads(m, o);
  m.set_temperature(o.temperature);
  m.set_end_temperature(o.end_temperature);
  m.set_global_bias(o.global_bias);
  m.set_global_loss(o.global_loss);
}

void set_hybrid(config::Mixer& mixer, const NatsLinearOptions& o) {
  config::NatsLinear& m = *mixer.mutable_nats_l();
  m.set_heads(o.heads);
  if (o.head_dim > 0) m.set_head_dim(o.head_dim);
  if (o.value_dim > 0) m.set_value_dim(o.value_dim);
  if (o.softmax_heads > 0) m.set_softmax_heads(o.softmax_heads);
  m.set_chunk(o.chunk);
  m.set_kernel(o.kernel);
}

void set_hybrid(config::Mixer& mixer, const HySparseOptions& o) {
  config::HySparse& m = *mixer.mutable_hysparse();
  set_heads(m, o);
  m.set_sparse(o.sparse);
  m.set_block(o.block);
  m.set_blocks(o.blocks);
}

void set_hybrid(config::Mixer& mixer, const FluxOptions& o) {
  config::Flux& m = *mixer.mutable_flux();
  set_heads(m, o);
  m.set_prompt(o.prompt);
  m.set_hidden(o.hidden);
  m.set_full_loss(o.full_loss);
  m.set_full_target(o.full_target);
}

void set_hybrid(config::Mixer& mixer, const ReplacementOptions& o) {
  config::Replacement& m = *mixer.mutable_replacement();
  set_heads(m, o);
  m.set_kind(schema_value(o.kind));
  m.set_position(schema_value(o.position));
}

}  // namespace weft::train
