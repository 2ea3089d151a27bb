// Messages of token mixers as option structs, and back. Those of softmax attention have a file of their own.
#include <algorithm>

#include "trainers/config/check.h"
#include "trainers/config/enum_values.h"
#include "trainers/config/options_text.h"
#include "trainers/config/translate.h"
#include "trainers/config/translate_hybrid.h"
#include "trainers/config/translate_recurrent.h"

namespace weft::train {

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
    case config::Mixer::kForgetting: {
      const config::Forgetting& m = mixer.forgetting();
      return ForgettingOptions{
          .heads = m.heads(), .kv_heads = m.kv_heads(), .head_dim = m.head_dim(), .has_rotation = m.rotation()};
    }
    case config::Mixer::kDifferential: {
      const config::Differential& m = mixer.differential();
      return DifferentialOptions{.heads = m.heads(), .kv_heads = m.kv_heads(), .head_dim = m.head_dim()};
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
    case config::Mixer::kLocalLinear: {
      const config::LocalLinear& m = mixer.local_linear();
      return LocalLinearOptions{.heads = m.heads(), .kv_heads = m.kv_heads(), .head_dim = m.head_dim()};
    }
    case config::Mixer::kTlinformer: {
      const config::Tlinformer& m = mixer.tlinformer();
      return TlinformerOptions{.heads = m.heads(),
                               .head_dim = m.head_dim(),
                               .depth = m.depth(),
                               .window = m.window(),
                               .rows = m.rows(),
                               .hidden = m.hidden()};
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
    case config::Mixer::kGla: return recurrent_options(mixer.gla());
    case config::Mixer::kDelta: return recurrent_options(mixer.delta());
    case config::Mixer::kLinearAttention: return recurrent_options(mixer.linear_attention());
    case config::Mixer::kRetnet: return recurrent_options(mixer.retnet());
    case config::Mixer::kLightning: return recurrent_options(mixer.lightning());
    case config::Mixer::kMamba2: return recurrent_options(mixer.mamba2());
    case config::Mixer::kHgrn: return recurrent_options(mixer.hgrn());
    case config::Mixer::kGatedSlots: return recurrent_options(mixer.gated_slots());
    case config::Mixer::kAdditiveSlots: return recurrent_options(mixer.additive_slots());
    case config::Mixer::kFlow: return recurrent_options(mixer.flow());
    case config::Mixer::kRala: return recurrent_options(mixer.rala());
    case config::Mixer::kPooling: return recurrent_options(mixer.pooling());
    case config::Mixer::kMiras: return recurrent_options(mixer.miras());
    case config::Mixer::kHymba: {
      const config::Hymba& m = mixer.hymba();
      return HymbaOptions{.heads = m.heads(),
                          .kv_heads = m.kv_heads(),
                          .head_dim = m.head_dim(),
                          .window = m.window(),
                          .state = m.state(),
                          .kernel = m.kernel(),
                          .meta = m.meta(),
                          .sharing = m.sharing()};
    }
    case config::Mixer::kRat: {
      const config::Rat& m = mixer.rat();
      return RatOptions{.heads = m.heads(), .head_dim = m.head_dim(), .chunk = m.chunk(), .groups = m.groups()};
    }
    case config::Mixer::kNats: return hybrid_options(mixer.nats());
    case config::Mixer::kNatsL: return hybrid_options(mixer.nats_l());
    case config::Mixer::kHysparse: return hybrid_options(mixer.hysparse());
    case config::Mixer::kFlux: return hybrid_options(mixer.flux());
    case config::Mixer::kReplacement: return hybrid_options(mixer.replacement());
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

namespace {

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

void set(config::Mixer& mixer, const SoftmaxOptions& o) { *mixer.mutable_softmax() = softmax_message(o); }
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
void set(config::Mixer& mixer, const ForgettingOptions& o) {
  set_sizes(*mixer.mutable_forgetting(), o);
  mixer.mutable_forgetting()->set_rotation(o.has_rotation);
}
void set(config::Mixer& mixer, const DifferentialOptions& o) { set_sizes(*mixer.mutable_differential(), o); }
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
void set(config::Mixer& mixer, const LocalLinearOptions& o) { set_sizes(*mixer.mutable_local_linear(), o); }
void set(config::Mixer& mixer, const TlinformerOptions& o) {
  config::Tlinformer& m = *mixer.mutable_tlinformer();
  set_sizes(m, o);
  m.set_depth(o.depth);
  m.set_rows(o.rows);
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
void set(config::Mixer& mixer, const HymbaOptions& o) {
  config::Hymba& m = *mixer.mutable_hymba();
  set_sizes(m, o);
  if (o.state > 0) m.set_state(o.state);
  m.set_kernel(o.kernel);
  m.set_meta(o.meta);
  m.set_sharing(o.sharing);
}
void set(config::Mixer& mixer, const RatOptions& o) {
  config::Rat& m = *mixer.mutable_rat();
  set_sizes(m, o);
  m.set_chunk(o.chunk);
  if (o.groups > 0) m.set_groups(o.groups);
}
void set(config::Mixer& mixer, const UmoeOptions& o) {
  set_sizes(*mixer.mutable_umoe(), o);
  mixer.mutable_umoe()->set_query_rank(o.query_rank);
}

}  // namespace

config::Mixer mixer_message(const MixerOptions& options) {
  config::Mixer mixer;
  auto set_any = [&](const auto& o) {
    if constexpr (requires { set_recurrent(mixer, o); }) set_recurrent(mixer, o);
    else if constexpr (requires { set_hybrid(mixer, o); }) set_hybrid(mixer, o);
    else set(mixer, o);
  };
  std::visit(set_any, options);
  clear_presets(mixer);
  return mixer;
}

}  // namespace weft::train
