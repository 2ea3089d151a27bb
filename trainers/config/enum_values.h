// Enums of the schema beside the enums of the library that mean the same. Each pair is written down once, as a switch from the library's
// value to the schema's. The way back is that switch turned round. A value that only one of the two sides has does not compile.
#pragma once

#include <array>
#include <optional>

#include "trainers/config/config.pb.h"
#include "weft/core/error.h"
#include "weft/data/recall.h"
#include "weft/distributed/context_attention.h"
#include "weft/models/language_model.h"
#include "weft/ops/attention.h"
#include "weft/optim/schedule.h"

namespace weft::train {

constexpr config::GatePosition::Value schema_value(GatePosition position) {
  switch (position) {
    case GatePosition::out: return config::GatePosition::out;
    case GatePosition::values: return config::GatePosition::values;
    case GatePosition::keys: return config::GatePosition::keys;
    case GatePosition::queries: return config::GatePosition::queries;
    case GatePosition::layer: return config::GatePosition::layer;
  }
  return config::GatePosition::unset;
}

constexpr config::GateActivation::Value schema_value(GateActivation activation) {
  switch (activation) {
    case GateActivation::sigmoid: return config::GateActivation::sigmoid;
    case GateActivation::silu: return config::GateActivation::silu;
    case GateActivation::shifted_sigmoid: return config::GateActivation::shifted_sigmoid;
    case GateActivation::identity: return config::GateActivation::identity;
  }
  return config::GateActivation::unset;
}

// Without a sink the schema has no message.
constexpr config::SinkKind::Value schema_value(SinkKind kind) {
  switch (kind) {
    case SinkKind::none: break;
    case SinkKind::off_by_one: return config::SinkKind::off_by_one;
    case SinkKind::logit: return config::SinkKind::logit;
    case SinkKind::key_bias: return config::SinkKind::key_bias;
    case SinkKind::key_value_bias: return config::SinkKind::key_value_bias;
    case SinkKind::value_bias: return config::SinkKind::value_bias;
  }
  return config::SinkKind::unset;
}

constexpr config::WeightKind::Value schema_value(WeightKind kind) {
  switch (kind) {
    case WeightKind::softmax: return config::WeightKind::softmax;
    case WeightKind::signed_softmax: return config::WeightKind::signed_softmax;
    case WeightKind::sigmoid: return config::WeightKind::sigmoid;
    case WeightKind::relu: return config::WeightKind::relu;
    case WeightKind::elu1: return config::WeightKind::elu1;
    case WeightKind::taylor2: return config::WeightKind::taylor2;
  }
  return config::WeightKind::unset;
}

constexpr config::SigmoidBias::Value schema_value(SigmoidBias bias) {
  switch (bias) {
    case SigmoidBias::context: return config::SigmoidBias::context;
    case SigmoidBias::row: return config::SigmoidBias::row;
    case SigmoidBias::none: return config::SigmoidBias::none;
  }
  return config::SigmoidBias::unset;
}

constexpr config::MixerPosition::Value schema_value(MixerPosition position) {
  switch (position) {
    case MixerPosition::model: return config::MixerPosition::model;
    case MixerPosition::alibi: return config::MixerPosition::alibi;
    case MixerPosition::none: return config::MixerPosition::none;
  }
  return config::MixerPosition::unset;
}

constexpr config::HeadPath::Value schema_value(HeadPath path) {
  switch (path) {
    case HeadPath::automatic: return config::HeadPath::automatic;
    case HeadPath::dense: return config::HeadPath::dense;
    case HeadPath::grouped: return config::HeadPath::grouped;
  }
  return config::HeadPath::unset;
}

constexpr config::SimplifiedKind::Value schema_value(SimplifiedKind kind) {
  switch (kind) {
    case SimplifiedKind::optimised: return config::SimplifiedKind::optimised;
    case SimplifiedKind::efficient: return config::SimplifiedKind::efficient;
    case SimplifiedKind::super: return config::SimplifiedKind::super;
  }
  return config::SimplifiedKind::unset;
}

constexpr config::DeconstructedKind::Value schema_value(DeconstructedKind kind) {
  switch (kind) {
    case DeconstructedKind::none: return config::DeconstructedKind::none;
    case DeconstructedKind::key_only: return config::DeconstructedKind::key_only;
    case DeconstructedKind::static_embedding: return config::DeconstructedKind::static_embedding;
    case DeconstructedKind::random_embedding: return config::DeconstructedKind::random_embedding;
    case DeconstructedKind::fixed_text: return config::DeconstructedKind::fixed_text;
  }
  return config::DeconstructedKind::unset;
}

constexpr config::DeltaDecay::Value schema_value(DeltaDecay decay) {
  switch (decay) {
    case DeltaDecay::none: return config::DeltaDecay::none;
    case DeltaDecay::head: return config::DeltaDecay::head;
    case DeltaDecay::channel: return config::DeltaDecay::channel;
  }
  return config::DeltaDecay::unset;
}

constexpr config::FeatureMap::Value schema_value(FeatureMap map) {
  switch (map) {
    case FeatureMap::elu1: return config::FeatureMap::elu1;
    case FeatureMap::taylor2: return config::FeatureMap::taylor2;
  }
  return config::FeatureMap::unset;
}

constexpr config::LightningDecay::Value schema_value(LightningDecay decay) {
  switch (decay) {
    case LightningDecay::slopes: return config::LightningDecay::slopes;
    case LightningDecay::linear: return config::LightningDecay::linear;
  }
  return config::LightningDecay::unset;
}

constexpr config::SlotKind::Value schema_value(SlotKind kind) {
  switch (kind) {
    case SlotKind::lightnet: return config::SlotKind::lightnet;
    case SlotKind::efficient: return config::SlotKind::efficient;
    case SlotKind::agent: return config::SlotKind::agent;
    case SlotKind::flare: return config::SlotKind::flare;
  }
  return config::SlotKind::unset;
}

constexpr config::PoolingKind::Value schema_value(PoolingKind kind) {
  switch (kind) {
    case PoolingKind::mean: return config::PoolingKind::mean;
    case PoolingKind::broadcast: return config::PoolingKind::broadcast;
  }
  return config::PoolingKind::unset;
}

constexpr config::ReplacementKind::Value schema_value(ReplacementKind kind) {
  switch (kind) {
    case ReplacementKind::linear: return config::ReplacementKind::linear;
    case ReplacementKind::identity: return config::ReplacementKind::identity;
  }
  return config::ReplacementKind::unset;
}

constexpr config::MirasKind::Value schema_value(MirasKind kind) {
  switch (kind) {
    case MirasKind::moneta: return config::MirasKind::moneta;
    case MirasKind::yaad: return config::MirasKind::yaad;
    case MirasKind::memora: return config::MirasKind::memora;
  }
  return config::MirasKind::unset;
}

constexpr config::ResidualWeights::Value schema_value(ResidualWeights weights) {
  switch (weights) {
    case ResidualWeights::softmax: return config::ResidualWeights::softmax;
    case ResidualWeights::sigmoid: return config::ResidualWeights::sigmoid;
    case ResidualWeights::fixed_softmax: return config::ResidualWeights::fixed_softmax;
    case ResidualWeights::scalars: return config::ResidualWeights::scalars;
  }
  return config::ResidualWeights::unset;
}

constexpr config::Recompute::Value schema_value(Recompute recompute) {
  switch (recompute) {
    case Recompute::none: return config::Recompute::none;
    case Recompute::mixers: return config::Recompute::mixers;
    case Recompute::blocks: return config::Recompute::blocks;
  }
  return config::Recompute::unset;
}

constexpr config::Tail::Value schema_value(DecayTail tail) {
  switch (tail) {
    case DecayTail::linear: return config::Tail::linear;
    case DecayTail::cosine: return config::Tail::cosine;
    case DecayTail::one_minus_sqrt: return config::Tail::one_minus_sqrt;
  }
  return config::Tail::unset;
}

constexpr config::AttentionKernels::Value schema_value(ops::AttentionBackend backend) {
  switch (backend) {
    case ops::AttentionBackend::automatic: return config::AttentionKernels::automatic;
    case ops::AttentionBackend::weft: return config::AttentionKernels::weft;
    case ops::AttentionBackend::cudnn: return config::AttentionKernels::cudnn;
    case ops::AttentionBackend::wgmma: return config::AttentionKernels::wgmma;
  }
  return config::AttentionKernels::unset;
}

constexpr config::Layout::Value schema_value(dist::LayoutKind layout) {
  switch (layout) {
    case dist::LayoutKind::contiguous: return config::Layout::contiguous;
    case dist::LayoutKind::striped: return config::Layout::striped;
    case dist::LayoutKind::zigzag: return config::Layout::zigzag;
    case dist::LayoutKind::balanced: return config::Layout::balanced;
  }
  return config::Layout::unset;
}

constexpr config::Scheme::Value schema_value(dist::Scheme scheme) {
  switch (scheme) {
    case dist::Scheme::ring: return config::Scheme::ring;
    case dist::Scheme::all_gather: return config::Scheme::all_gather;
    case dist::Scheme::ulysses: return config::Scheme::ulysses;
    case dist::Scheme::usp: return config::Scheme::usp;
    case dist::Scheme::bidirectional_ring: return config::Scheme::bidirectional_ring;
    case dist::Scheme::double_ring: return config::Scheme::double_ring;
  }
  return config::Scheme::unset;
}

// Types that a model computes in; the others are types of tensors only.
constexpr config::Compute::Value schema_value(DType dtype) {
  switch (dtype) {
    case DType::float32: return config::Compute::f32;
    case DType::bfloat16: return config::Compute::bf16;
    case DType::float64:
    case DType::int64:
    case DType::int32:
    case DType::uint8:
    case DType::boolean: break;
  }
  return config::Compute::unset;
}

constexpr config::CopyKind::Value schema_value(data::CopyKind kind) {
  switch (kind) {
    case data::CopyKind::selective: return config::CopyKind::selective;
    case data::CopyKind::delayed: return config::CopyKind::delayed;
    case data::CopyKind::string: return config::CopyKind::string;
    case data::CopyKind::reversed: return config::CopyKind::reversed;
  }
  return config::CopyKind::unset;
}

constexpr config::StateKind::Value schema_value(data::StateKind kind) {
  switch (kind) {
    case data::StateKind::sum: return config::StateKind::sum;
    case data::StateKind::permutation: return config::StateKind::permutation;
  }
  return config::StateKind::unset;
}

// Whether a number of the schema is `auto`, which stands for no value of the library.
template <class Schema>
constexpr bool is_auto([[maybe_unused]] size_t number) {
  if constexpr (requires { Schema::auto_; }) return number == static_cast<size_t>(Schema::auto_);
  else return false;
}

// The library's value at the number of each value of the schema; unset and auto have none.
template <class Schema, class Library>
consteval auto library_values() {
  constexpr int kMostValues = 64;  // of an enum of the library
  std::array<std::optional<Library>, Schema::Value_ARRAYSIZE> out;
  for (int i = 0; i < kMostValues; ++i) {
    const auto number = static_cast<size_t>(schema_value(static_cast<Library>(i)));
    if (number == 0) continue;
    if (out[number]) throw "two values of the library stand for one of the schema";
    out[number] = static_cast<Library>(i);
  }
  for (size_t number = 1; number < out.size(); ++number)
    if (!out[number] && !is_auto<Schema>(number)) throw "a value of the schema stands for none of the library";
  return out;
}

// library_value<config::GatePosition, GatePosition>(gate.position())
template <class Schema, class Library>
Library library_value(typename Schema::Value value) {
  constexpr auto kValues = library_values<Schema, Library>();
  const auto number = static_cast<size_t>(value);
  if (number >= kValues.size() || !kValues[number])
    fail(str("config: number ", number, " of ", Schema::descriptor()->full_name(), " is none of its values"),
         "resolve the config before it is translated");
  return *kValues[number];
}

// The same where the schema has `auto`: without a value then.
template <class Schema, class Library>
std::optional<Library> chosen_value(typename Schema::Value value) {
  if (is_auto<Schema>(static_cast<size_t>(value))) return std::nullopt;
  return library_value<Schema, Library>(value);
}

}  // namespace weft::train
