// Messages of token mixers and residual streams as option structs.
#include <algorithm>

#include "trainers/config/check.h"
#include "trainers/config/enum_values.h"
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

}  // namespace

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

// Fields that are not set are 0: the library fills them in.
MixerMaker mixer_maker(const config::Mixer& mixer) {
  switch (mixer.kind_case()) {
    case config::Mixer::kSoftmax: return softmax_options(mixer.softmax());
    case config::Mixer::kMla: {
      const config::Mla& m = mixer.mla();
      return MlaOptions{.heads = m.heads(),
                        .head_dim = m.head_dim(),
                        .rope_dim = m.rope_dim(),
                        .kv_rank = m.kv_rank(),
                        .q_rank = m.q_rank()};
    }
    case config::Mixer::kNexus: {
      const config::Nexus& m = mixer.nexus();
      return NexusOptions{.heads = m.heads(),
                          .kv_heads = m.kv_heads(),
                          .head_dim = m.head_dim(),
                          .order = m.order(),
                          .has_values_of_layer = m.layer_values(),
                          .has_qk_norm = m.qk_norm()};
    }
    case config::Mixer::kHopfield: {
      const config::Hopfield& m = mixer.hopfield();
      return HopfieldOptions{
          .heads = m.heads(), .kv_heads = m.kv_heads(), .head_dim = m.head_dim(), .steps = m.steps()};
    }
    case config::Mixer::kDual: {
      const config::Dual& m = mixer.dual();
      return DualOptions{.heads = m.heads(),
                         .relational_heads = m.relational_heads(),
                         .relations = m.relations(),
                         .symbols = m.symbols()};
    }
    case config::Mixer::kSimplified: {
      const config::Simplified& m = mixer.simplified();
      return SimplifiedOptions{.kind = library_value<config::SimplifiedKind, SimplifiedKind>(m.kind()),
                               .heads = m.heads()};
    }
    case config::Mixer::kDeconstructed: {
      const config::Deconstructed& m = mixer.deconstructed();
      return DeconstructedOptions{.kind = library_value<config::DeconstructedKind, DeconstructedKind>(m.kind()),
                                  .heads = m.heads()};
    }
    case config::Mixer::kTapa: {
      const config::Tapa& m = mixer.tapa();
      return TapaOptions{.heads = m.heads(),
                         .kv_heads = m.kv_heads(),
                         .head_dim = m.head_dim(),
                         .amplitude_share = m.amplitude_share(),
                         .power = m.power(),
                         .window = m.window()};
    }
    case config::Mixer::kNeural: {
      const config::Neural& m = mixer.neural();
      return NeuralOptions{.heads = m.heads(),
                           .kv_heads = m.kv_heads(),
                           .head_dim = m.head_dim(),
                           .hidden = m.hidden(),
                           .window = m.window()};
    }
    case config::Mixer::kMultiToken: {
      const config::MultiToken& m = mixer.multi_token();
      return MultiTokenOptions{.heads = m.heads(),
                               .head_dim = m.head_dim(),
                               .query_kernel = m.query_kernel(),
                               .key_kernel = m.key_kernel(),
                               .has_weight_conv = m.weight_conv(),
                               .mixes_scores = m.mix_scores(),
                               .group = m.group(),
                               .has_gate = m.gate(),
                               .window = m.window()};
    }
    case config::Mixer::kRcmha: {
      const config::Rcmha& m = mixer.rcmha();
      return RcmhaOptions{.heads = m.heads(),
                          .kv_heads = m.kv_heads(),
                          .head_dim = m.head_dim(),
                          .kernel = m.kernel(),
                          .window = m.window()};
    }
    case config::Mixer::kNap: {
      const config::Nap& m = mixer.nap();
      return NapOptions{.heads = m.heads(),
                        .kv_heads = m.kv_heads(),
                        .head_dim = m.head_dim(),
                        .window = m.window(),
                        .divides_by_root = m.divide_by_root()};
    }
    case config::Mixer::kRelativeBias: {
      const config::RelativeBias& m = mixer.relative_bias();
      return RelativeBiasOptions{.heads = m.heads(),
                                 .kv_heads = m.kv_heads(),
                                 .head_dim = m.head_dim(),
                                 .buckets = m.buckets(),
                                 .max_distance = m.max_distance(),
                                 .window = m.window()};
    }
    case config::Mixer::kMoa: {
      const config::Moa& m = mixer.moa();
      return MoaOptions{.experts = m.experts(),
                        .active = m.active(),
                        .head_dim = m.head_dim(),
                        .has_noise = m.noise(),
                        .is_detached = m.detached(),
                        .balance_loss = m.balance_loss(),
                        .z_loss = m.z_loss(),
                        .is_dense = m.dense()};
    }
    case config::Mixer::kUmoe: {
      const config::Umoe& m = mixer.umoe();
      return UmoeOptions{.experts = m.experts(),
                         .active = m.active(),
                         .head_dim = m.head_dim(),
                         .hidden = m.hidden(),
                         .query_rank = m.query_rank(),
                         .balance_loss = m.balance_loss(),
                         .is_dense = m.dense()};
    }
    case config::Mixer::kCustom:
    case config::Mixer::KIND_NOT_SET: break;
  }
  fail("config: a mixer without a kind of the library", "resolve the config, and make custom mixers from their rows");
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
