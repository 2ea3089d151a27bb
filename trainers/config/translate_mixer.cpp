// Messages of token mixers and residual streams as option structs. Enums of the schema and of the library name the same things.
#include <algorithm>

#include "trainers/config/check.h"
#include "trainers/config/translate.h"

namespace weft::train {

namespace {

GateOptions gate_options(const config::Gate& gate) {
  auto position = [&] {
    switch (gate.position()) {
      case config::GatePosition::values: return GatePosition::values;
      case config::GatePosition::keys: return GatePosition::keys;
      case config::GatePosition::queries: return GatePosition::queries;
      case config::GatePosition::layer: return GatePosition::layer;
      default: return GatePosition::out;
    }
  };
  auto activation = [&] {
    switch (gate.activation()) {
      case config::GateActivation::silu: return GateActivation::silu;
      case config::GateActivation::shifted_sigmoid: return GateActivation::shifted_sigmoid;
      case config::GateActivation::identity: return GateActivation::identity;
      default: return GateActivation::sigmoid;
    }
  };
  return {.position = position(),
          .activation = activation(),
          .is_per_head = gate.per_head(),
          .is_head_shared = gate.head_shared(),
          .is_additive = gate.additive(),
          .reads_input = gate.reads_input()};
}

WeightOptions weight_options(const config::Weights& weights) {
  auto kind = [&] {
    switch (weights.kind()) {
      case config::WeightKind::signed_softmax: return WeightKind::signed_softmax;
      case config::WeightKind::sigmoid: return WeightKind::sigmoid;
      case config::WeightKind::relu: return WeightKind::relu;
      case config::WeightKind::elu1: return WeightKind::elu1;
      case config::WeightKind::taylor2: return WeightKind::taylor2;
      default: return WeightKind::softmax;
    }
  };
  return {.kind = kind(),
          .keeps_ends = weights.keep_ends(),
          .bias = weights.bias() == config::SigmoidBias::row    ? SigmoidBias::row
                  : weights.bias() == config::SigmoidBias::none ? SigmoidBias::none
                                                                : SigmoidBias::context,
          .power = weights.power(),
          .is_divided_by_sum = weights.divide_by_sum()};
}

SinkKind sink_kind(config::SinkKind::Value kind) {
  switch (kind) {
    case config::SinkKind::off_by_one: return SinkKind::off_by_one;
    case config::SinkKind::key_bias: return SinkKind::key_bias;
    case config::SinkKind::key_value_bias: return SinkKind::key_value_bias;
    case config::SinkKind::value_bias: return SinkKind::value_bias;
    default: return SinkKind::logit;
  }
}

HeadMixtureOptions mixture_options(const config::HeadMixture& mixture) {
  auto path = [&] {
    switch (mixture.path()) {
      case config::HeadPath::dense: return HeadPath::dense;
      case config::HeadPath::grouped: return HeadPath::grouped;
      default: return HeadPath::automatic;
    }
  };
  return {.active = mixture.active(),
          .shared = mixture.shared(),
          .has_paper_scale = mixture.paper_scale(),
          .reads_query_norm = mixture.query_norm(),
          .path = path(),
          .balance_loss = mixture.balance_loss(),
          .has_running_load = mixture.running_load()};
}

SimplifiedKind simplified_kind(config::SimplifiedKind::Value kind) {
  switch (kind) {
    case config::SimplifiedKind::efficient: return SimplifiedKind::efficient;
    case config::SimplifiedKind::super: return SimplifiedKind::super;
    default: return SimplifiedKind::optimised;
  }
}

DeconstructedKind deconstructed_kind(config::DeconstructedKind::Value kind) {
  switch (kind) {
    case config::DeconstructedKind::key_only: return DeconstructedKind::key_only;
    case config::DeconstructedKind::random_embedding: return DeconstructedKind::random_embedding;
    case config::DeconstructedKind::fixed_text: return DeconstructedKind::fixed_text;
    case config::DeconstructedKind::static_embedding: return DeconstructedKind::static_embedding;
    default: return DeconstructedKind::none;
  }
}

}  // namespace

RoutedResidualOptions residual_options(const config::Residual& residual) {
  const bool is_delta = residual.has_delta();
  const config::RoutedResidual& routed = is_delta ? residual.delta() : residual.attention();
  auto weights = [&] {
    switch (routed.weights()) {
      case config::ResidualWeights::sigmoid: return ResidualWeights::sigmoid;
      case config::ResidualWeights::fixed_softmax: return ResidualWeights::fixed_softmax;
      case config::ResidualWeights::scalars: return ResidualWeights::scalars;
      default: return ResidualWeights::softmax;
    }
  };
  return {.sources = routed.states()       ? ResidualSources::states
                     : routed.has_blocks() ? ResidualSources::block_sums
                                           : ResidualSources::outputs,
          .combine = is_delta ? ResidualCombine::add : ResidualCombine::replace,
          .weights = weights(),
          .blocks = routed.blocks(),
          .window = routed.window(),
          .has_key_norm = routed.key_norm(),
          .has_key_gain = routed.key_gain(),
          .has_null_source = routed.null_source(),
          .query_std = routed.query_std()};
}

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
                   .dropout = softmax.dropout(),
                   .has_score_scale = softmax.score_scale(),
                   .has_score_shift = softmax.score_shift(),
                   .components = softmax.components(),
                   .has_head_norm = softmax.head_norm(),
                   .has_out_silu = softmax.out_silu()};
  o.position = softmax.position() == config::MixerPosition::alibi  ? MixerPosition::alibi
               : softmax.position() == config::MixerPosition::none ? MixerPosition::none
                                                                   : MixerPosition::model;
  if (softmax.has_temperature())
    o.temperature = {softmax.temperature().position(), softmax.temperature().token(), softmax.temperature().values()};
  if (softmax.has_weights()) o.weights = weight_options(softmax.weights());
  for (const config::Gate& gate : softmax.gate()) o.gates.push_back(gate_options(gate));
  if (softmax.has_sink()) o.sink = {sink_kind(softmax.sink().kind()), softmax.sink().head_shared()};
  if (softmax.has_head_mixture()) o.head_mixture = mixture_options(softmax.head_mixture());
  if (softmax.has_affine())
    o.affine = {.is_on = true,
                .has_sigmoid = softmax.affine().sigmoid(),
                .divides_by_context = softmax.affine().context(),
                .decay = softmax.affine().decay(),
                .initial_mean = softmax.affine().initial_mean()};
  return o;
}

// Fields that are not set are 0: the library fills them in.
MixerMaker mixer_maker(const config::Mixer& mixer) {
  switch (mixer.kind_case()) {
    case config::Mixer::kMla: {
      const config::Mla& m = mixer.mla();
      return MlaOptions{m.heads(), m.head_dim(), m.rope_dim(), m.kv_rank(), m.q_rank()};
    }
    case config::Mixer::kNexus: {
      const config::Nexus& m = mixer.nexus();
      return NexusOptions{m.heads(), m.kv_heads(), m.head_dim(), m.order(), m.layer_values(), m.qk_norm()};
    }
    case config::Mixer::kHopfield: {
      const config::Hopfield& m = mixer.hopfield();
      return HopfieldOptions{m.heads(), m.kv_heads(), m.head_dim(), m.steps()};
    }
    case config::Mixer::kDual: {
      const config::Dual& m = mixer.dual();
      return DualOptions{m.heads(), m.relational_heads(), m.relations(), m.symbols()};
    }
    case config::Mixer::kSimplified:
      return SimplifiedOptions{simplified_kind(mixer.simplified().kind()), mixer.simplified().heads()};
    case config::Mixer::kDeconstructed:
      return DeconstructedOptions{deconstructed_kind(mixer.deconstructed().kind()), mixer.deconstructed().heads()};
    case config::Mixer::kTapa: {
      const config::Tapa& m = mixer.tapa();
      return TapaOptions{m.heads(), m.kv_heads(), m.head_dim(), m.amplitude_share(), m.power(), m.window()};
    }
    case config::Mixer::kNeural: {
      const config::Neural& m = mixer.neural();
      return NeuralOptions{m.heads(), m.kv_heads(), m.head_dim(), m.hidden(), m.window()};
    }
    case config::Mixer::kMultiToken: {
      const config::MultiToken& m = mixer.multi_token();
      return MultiTokenOptions{m.heads(),      m.head_dim(), m.query_kernel(), m.key_kernel(), m.weight_conv(),
                               m.mix_scores(), m.group(),    m.gate(),         m.window()};
    }
    case config::Mixer::kRcmha: {
      const config::Rcmha& m = mixer.rcmha();
      return RcmhaOptions{m.heads(), m.kv_heads(), m.head_dim(), m.kernel(), m.window()};
    }
    case config::Mixer::kNap: {
      const config::Nap& m = mixer.nap();
      return NapOptions{m.heads(), m.kv_heads(), m.head_dim(), m.window(), m.divide_by_root()};
    }
    case config::Mixer::kRelativeBias: {
      const config::RelativeBias& m = mixer.relative_bias();
      return RelativeBiasOptions{m.heads(), m.kv_heads(), m.head_dim(), m.buckets(), m.max_distance(), m.window()};
    }
    case config::Mixer::kMoa: {
      const config::Moa& m = mixer.moa();
      return MoaOptions{m.experts(),  m.active(),       m.head_dim(), m.noise(),
                        m.detached(), m.balance_loss(), m.z_loss(),   m.dense()};
    }
    case config::Mixer::kUmoe: {
      const config::Umoe& m = mixer.umoe();
      return UmoeOptions{m.experts(),    m.active(),       m.head_dim(), m.hidden(),
                         m.query_rank(), m.balance_loss(), m.dense()};
    }
    default: return softmax_options(mixer.softmax());
  }
}

FfnOptions umoe_ffn_options(const config::Model& model) {
  const config::Umoe& umoe = model.mixer(0).umoe();
  const config::UmoeFfn& ffn = model.ffn().umoe();
  int64_t of_mixer = umoe.has_hidden() ? umoe.hidden() : std::max<int64_t>(model.dim() / 4, 1);
  return {.kind = FfnKind::umoe,
          .hidden = ffn.has_hidden() ? ffn.hidden() : of_mixer,
          .experts = umoe.experts(),
          .active = ffn.active(),
          .is_dense = umoe.dense()};
}

}  // namespace weft::train
