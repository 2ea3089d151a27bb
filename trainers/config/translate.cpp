#include "trainers/config/translate.h"

#include <sstream>

#include "trainers/config/check.h"

namespace weft::train {

namespace {

using config::Experiment;
using config::Loaded;

ops::RotaryOptions rotary_options(const config::Rope& rope) {
  ops::RotaryOptions options{
      .base = rope.base(), .interleaved = rope.style() == config::RopeStyle::interleaved, .fraction = rope.fraction()};
  if (!rope.has_scaling()) return options;
  const config::RopeScaling& scaling = rope.scaling();
  if (scaling.has_linear()) options.linear = ops::RotaryOptions::Linear{scaling.linear().factor()};
  if (scaling.has_llama3()) {
    const auto& s = scaling.llama3();
    options.llama3 =
        ops::RotaryOptions::Llama3{s.factor(), s.low_freq_factor(), s.high_freq_factor(), s.original_context()};
  }
  if (scaling.has_yarn()) {
    const auto& s = scaling.yarn();
    options.yarn =
        ops::RotaryOptions::Yarn{s.factor(), s.beta_fast(), s.beta_slow(), s.attention_factor(), s.original_context()};
  }
  return options;
}

// A mixer that the program brought, with the numbers and texts of the config.
MixerMaker custom_mixer(const Loaded& loaded, const config::Custom& custom, const std::string& path) {
  std::vector<std::string> names;
  for (const MixerRow& row : loaded.mixers) {
    names.push_back(row.name);
    if (row.name != custom.type()) continue;
    return [make = row.make, custom](MixerArgs args, Rng rng) {
      for (const auto& number : custom.number()) args.numbers[number.key()] = number.value();
      for (const auto& text : custom.text()) args.texts[text.key()] = text.value();
      return make(args, rng);
    };
  }
  config::refuse(loaded, path, str("names '", custom.type(), "', which is not registered."),
                 names.empty() ? "This program has no mixers of its own; use one of the library's."
                               : config::suggestion(custom.type(), names, "This program knows"));
}

std::vector<int> pattern_of(const std::string& text) {
  std::istringstream in(text);
  std::vector<int> pattern;
  for (int index; in >> index;) pattern.push_back(index);
  return pattern;
}

}  // namespace

LanguageModelOptions model_options(const Loaded& loaded, int64_t vocab) {
  const config::Model& m = loaded.experiment.model();
  if (m.has_vocab() && m.vocab() < vocab)
    config::refuse(loaded, "model.vocab", str("is ", m.vocab(), ", but the tokenizer has ", vocab, " ids"),
                   "raise it, or leave it out");
  LanguageModelOptions o{
      .vocab = m.has_vocab() ? m.vocab() : vocab, .dim = m.dim(), .layers = m.layers(), .context = m.context()};
  o.has_tied_embedding = m.embedding().tied();
  o.norm = m.norm().has_layer() ? NormOptions{NormKind::layer, m.norm().layer().eps()}
                                : NormOptions{NormKind::rms, m.norm().rms().eps()};
  o.position = m.position().has_learned() ? PositionKind::learned
               : m.position().has_none()  ? PositionKind::none
                                          : PositionKind::rotary;
  if (m.position().has_rope()) o.rotary = rotary_options(m.position().rope());
  o.mixers.clear();
  for (int i = 0; i < m.mixer_size(); ++i) {
    const config::Mixer& mixer = m.mixer(i);
    o.mixers.push_back(mixer.has_custom() ? custom_mixer(loaded, mixer.custom(), str("model.mixer[", i, "].custom"))
                                          : mixer_maker(mixer));
  }
  o.pattern = pattern_of(m.pattern());
  o.ffn = m.ffn().has_gelu()
              ? FfnOptions{.kind = FfnKind::gelu, .hidden = m.ffn().gelu().hidden(), .has_bias = m.ffn().gelu().bias()}
          : m.ffn().has_umoe() ? umoe_ffn_options(m)
                               : FfnOptions{.kind = FfnKind::swiglu, .hidden = m.ffn().swiglu().hidden()};
  if (!m.residual().has_standard()) o.residual = residual_options(m.residual());
  o.residual_dropout = m.residual().has_attention() ? m.residual().attention().dropout()
                       : m.residual().has_delta()   ? m.residual().delta().dropout()
                                                    : m.residual().standard().dropout();
  o.std = m.init().std();
  o.scales_init_by_depth = m.init().scale_by_depth();
  switch (loaded.experiment.train().recompute()) {
    case config::Recompute::blocks: o.recompute = Recompute::blocks; break;
    case config::Recompute::mixers: o.recompute = Recompute::mixers; break;
    default: o.recompute = Recompute::none;
  }
  return o;
}

std::vector<ParamGroup> param_groups(const Experiment& experiment) {
  std::vector<ParamGroup> groups;
  for (const config::Group& g : experiment.optim().group()) {
    ParamGroup group{.match = g.match(), .num_dims = static_cast<int>(g.rank())};
    if (g.has_muon()) {
      group.algorithm = MuonOptions{.lr = g.muon().lr(),
                                    .momentum = g.muon().momentum(),
                                    .weight_decay = g.muon().weight_decay(),
                                    .is_nesterov = g.muon().nesterov(),
                                    .num_iterations = static_cast<int>(g.muon().steps())};
    } else if (g.has_lion()) {
      group.algorithm = LionOptions{.lr = g.lion().lr(),
                                    .beta1 = g.lion().betas(0),
                                    .beta2 = g.lion().betas(1),
                                    .weight_decay = g.lion().weight_decay()};
    } else if (g.has_schedule_free()) {
      group.algorithm = ScheduleFreeOptions{.lr = g.schedule_free().lr(),
                                            .beta1 = g.schedule_free().betas(0),
                                            .beta2 = g.schedule_free().betas(1),
                                            .eps = g.schedule_free().eps(),
                                            .weight_decay = g.schedule_free().weight_decay()};
    } else if (g.has_sgd()) {
      group.algorithm = SgdOptions{.lr = g.sgd().lr(),
                                   .momentum = g.sgd().momentum(),
                                   .weight_decay = g.sgd().weight_decay(),
                                   .is_nesterov = g.sgd().nesterov()};
    } else {
      group.algorithm = AdamWOptions{.lr = g.adamw().lr(),
                                     .beta1 = g.adamw().betas(0),
                                     .beta2 = g.adamw().betas(1),
                                     .eps = g.adamw().eps(),
                                     .weight_decay = g.adamw().weight_decay()};
    }
    groups.push_back(std::move(group));
  }
  return groups;
}

ScheduleOptions schedule_options(const Experiment& experiment) {
  const config::Schedule& s = experiment.optim().schedule();
  if (s.has_constant()) return {.kind = ScheduleKind::constant, .warmup = s.constant().warmup()};
  if (s.has_linear()) return {.kind = ScheduleKind::linear, .warmup = s.linear().warmup(), .floor = s.linear().floor()};
  if (s.has_inverse_sqrt()) return {.kind = ScheduleKind::inverse_sqrt, .warmup = s.inverse_sqrt().warmup()};
  if (s.has_wsd()) {
    const auto& wsd = s.wsd();
    DecayTail tail = wsd.tail() == config::Tail::linear   ? DecayTail::linear
                     : wsd.tail() == config::Tail::cosine ? DecayTail::cosine
                                                          : DecayTail::one_minus_sqrt;
    return {.kind = ScheduleKind::wsd,
            .warmup = wsd.warmup(),
            .floor = wsd.floor(),
            .decay_fraction = wsd.decay_fraction(),
            .tail = tail};
  }
  return {.kind = ScheduleKind::cosine, .warmup = s.cosine().warmup(), .floor = s.cosine().floor()};
}

DType compute_dtype(const Experiment& experiment) {
  return experiment.train().compute() == config::Compute::bf16 ? kBF16 : kF32;
}

ops::AttentionBackend attention_backend(const Experiment& experiment) {
  switch (experiment.train().attention()) {
    case config::AttentionKernels::weft: return ops::AttentionBackend::weft;
    case config::AttentionKernels::cudnn: return ops::AttentionBackend::cudnn;
    case config::AttentionKernels::wgmma: return ops::AttentionBackend::wgmma;
    default: return ops::AttentionBackend::automatic;
  }
}

Plan make_plan(const Experiment& experiment) {
  const config::Train& t = experiment.train();
  Plan plan{
      .context = experiment.model().context(), .micro_batch = t.micro_batch(), .tokens_per_step = t.tokens_per_step()};
  plan.rows_per_step = plan.tokens_per_step / plan.context;
  plan.micro_batches = plan.rows_per_step / plan.micro_batch;
  plan.steps = t.tokens() / plan.tokens_per_step;
  return plan;
}

}  // namespace weft::train
