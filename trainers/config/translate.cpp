#include "trainers/config/translate.h"

#include "trainers/config/check.h"
#include "trainers/config/enum_values.h"
#include "trainers/config/pattern.h"

namespace weft::train {

namespace {

using config::Experiment;
using config::Loaded;

[[noreturn]] void fail_unset(const char* path) {
  fail(str("config: ", path, " has no kind"), "resolve the config before it is translated");
}

ops::RotaryOptions rotary_options(const config::Rope& rope) {
  static_assert(config::RopeStyle::Value_ARRAYSIZE == 3, "another style of rotation is translated here");
  ops::RotaryOptions options{
      .base = rope.base(), .interleaved = rope.style() == config::RopeStyle::interleaved, .fraction = rope.fraction()};
  if (!rope.has_scaling()) return options;
  const config::RopeScaling& scaling = rope.scaling();
  switch (scaling.kind_case()) {
    case config::RopeScaling::kLinear:
      options.linear = ops::RotaryOptions::Linear{.factor = scaling.linear().factor()};
      break;
    case config::RopeScaling::kLlama3: {
      const config::Llama3Scaling& s = scaling.llama3();
      options.llama3 = ops::RotaryOptions::Llama3{.factor = s.factor(),
                                                  .low_freq_factor = s.low_freq_factor(),
                                                  .high_freq_factor = s.high_freq_factor(),
                                                  .original_context = s.original_context()};
      break;
    }
    case config::RopeScaling::kYarn: {
      const config::YarnScaling& s = scaling.yarn();
      options.yarn = ops::RotaryOptions::Yarn{.factor = s.factor(),
                                              .beta_fast = s.beta_fast(),
                                              .beta_slow = s.beta_slow(),
                                              .attention_factor = s.attention_factor(),
                                              .original_context = s.original_context()};
      break;
    }
    case config::RopeScaling::KIND_NOT_SET: fail_unset("model.position.rope.scaling");
  }
  return options;
}

PositionKind position_kind(const config::Position& position) {
  switch (position.kind_case()) {
    case config::Position::kRope: return PositionKind::rotary;
    case config::Position::kLearned: return PositionKind::learned;
    case config::Position::kNone: return PositionKind::none;
    case config::Position::KIND_NOT_SET: break;
  }
  fail_unset("model.position");
}

double residual_dropout(const config::Residual& residual) {
  switch (residual.kind_case()) {
    case config::Residual::kStandard: return residual.standard().dropout();
    case config::Residual::kAttention: return residual.attention().dropout();
    case config::Residual::kDelta: return residual.delta().dropout();
    case config::Residual::kCustom: return 0;
    case config::Residual::KIND_NOT_SET: break;
  }
  fail_unset("model.residual");
}

// The maker of a part that the program brought; `kind` is its plural. Error at `path` if there is none of that name.
template <class Row>
const auto& own_maker(const Loaded& loaded, const std::vector<Row>& rows, const config::Custom& custom,
                      const std::string& path, const char* kind) {
  std::vector<std::string> names;
  for (const Row& row : rows) {
    if (row.name == custom.type()) return row.make;
    names.push_back(row.name);
  }
  config::refuse(loaded, path, str("names '", custom.type(), "', which is not registered."),
                 names.empty() ? str("This program has no ", kind, " of its own; use one of the library's.")
                               : config::suggestion(custom.type(), names, "This program knows"));
}

// The maker with the numbers and texts of the config.
auto with_custom(auto make, const config::Custom& custom) {
  return [make = std::move(make), custom](auto args, auto... more) {
    for (const auto& number : custom.number()) args.numbers[number.key()] = number.value();
    for (const auto& text : custom.text()) args.texts[text.key()] = text.value();
    return make(args, more...);
  };
}

MixerMaker any_mixer(const Loaded& loaded, const config::Mixer& mixer, const std::string& path) {
  const cli::Extensions& own = loaded.own;
  if (mixer.has_custom()) {
    const config::Custom& custom = mixer.custom();
    return with_custom(own_maker(loaded, own.mixers, custom, path + ".custom", "mixers"), custom);
  }
  if (!mixer.has_softmax()) return mixer_maker(mixer);
  const config::Softmax& softmax = mixer.softmax();
  SoftmaxOptions options = softmax_options(softmax);
  if (softmax.has_custom_heads()) {
    const config::Custom& custom = softmax.custom_heads();
    options.own_heads = with_custom(
        own_maker(loaded, own.head_mixtures, custom, path + ".softmax.custom_heads", "mixtures of heads"), custom);
  }
  if (softmax.has_custom_attention()) {
    const config::Custom& custom = softmax.custom_attention();
    options.own_attention =
        with_custom(own_maker(loaded, own.attentions, custom, path + ".softmax.custom_attention", "attentions"),
                    custom)(cli::AttentionArgs());
  }
  return options;
}

NormOptions norm_options(const config::Norm& norm) {
  switch (norm.kind_case()) {
    case config::Norm::kRms: return {.kind = NormKind::rms, .eps = norm.rms().eps()};
    case config::Norm::kLayer: return {.kind = NormKind::layer, .eps = norm.layer().eps()};
    case config::Norm::kCustom: return {};  // not read
    case config::Norm::KIND_NOT_SET: break;
  }
  fail_unset("model.norm");
}

FfnOptions ffn_options(const config::Model& model) {
  const config::Ffn& ffn = model.ffn();
  switch (ffn.kind_case()) {
    case config::Ffn::kSwiglu: return {.kind = FfnKind::swiglu, .hidden = ffn.swiglu().hidden()};
    case config::Ffn::kGelu:
      return {.kind = FfnKind::gelu, .hidden = ffn.gelu().hidden(), .has_bias = ffn.gelu().bias()};
    case config::Ffn::kUmoe: return umoe_ffn_options(model);
    case config::Ffn::kNone:
    case config::Ffn::kCustom: return {};  // not read
    case config::Ffn::KIND_NOT_SET: break;
  }
  fail_unset("model.ffn");
}

ResidualMaker residual_maker(const Loaded& loaded) {
  const config::Residual& residual = loaded.experiment.model().residual();
  switch (residual.kind_case()) {
    case config::Residual::kStandard: return StandardResidualOptions{};
    case config::Residual::kAttention:
    case config::Residual::kDelta: return residual_options(residual);
    case config::Residual::kCustom:
      return with_custom(
          own_maker(loaded, loaded.own.residuals, residual.custom(), "model.residual.custom", "residual streams"),
          residual.custom());
    case config::Residual::KIND_NOT_SET: break;
  }
  fail_unset("model.residual");
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
  o.norm = norm_options(m.norm());
  if (m.norm().has_custom())
    o.own_norm = with_custom(own_maker(loaded, loaded.own.norms, m.norm().custom(), "model.norm.custom", "norms"),
                             m.norm().custom());
  o.position = position_kind(m.position());
  if (m.position().has_rope()) o.rotary = rotary_options(m.position().rope());
  o.mixers.clear();
  for (int i = 0; i < m.mixer_size(); ++i)
    o.mixers.push_back(any_mixer(loaded, m.mixer(i), str("model.mixer[", i, "]")));
  o.pattern = config::layer_mixers(m);
  o.ffn = ffn_options(m);
  o.has_ffn = !m.ffn().has_none();
  if (m.ffn().has_custom())
    o.own_ffn =
        with_custom(own_maker(loaded, loaded.own.ffns, m.ffn().custom(), "model.ffn.custom", "feed-forward networks"),
                    m.ffn().custom());
  for (const config::Adapter& adapter : m.adapter())
    o.adapters.push_back({.match = adapter.match(), .rank = adapter.rank(), .alpha = adapter.alpha()});
  o.residual = residual_maker(loaded);
  o.residual_dropout = residual_dropout(m.residual());
  o.std = m.init().std();
  if (m.init().has_embedding_std()) o.embedding_std = m.init().embedding_std();
  if (m.init().has_out_std()) o.out_std = m.init().out_std();
  o.scales_init_by_depth = m.init().scale_by_depth();
  o.recompute = library_value<config::Recompute, Recompute>(loaded.experiment.train().recompute());
  return o;
}

std::vector<ParamGroup> param_groups(const Experiment& experiment) {
  std::vector<ParamGroup> groups;
  for (const config::Group& g : experiment.optim().group()) {
    groups.push_back({.match = g.match(), .num_dims = static_cast<int>(g.rank())});
    auto& algorithm = groups.back().algorithm;
    switch (g.optimiser_case()) {
      case config::Group::kAdamw:
        algorithm = AdamWOptions{.lr = g.adamw().lr(),
                                 .beta1 = g.adamw().betas(0),
                                 .beta2 = g.adamw().betas(1),
                                 .eps = g.adamw().eps(),
                                 .weight_decay = g.adamw().weight_decay()};
        break;
      case config::Group::kMuon:
        algorithm = MuonOptions{.lr = g.muon().lr(),
                                .momentum = g.muon().momentum(),
                                .weight_decay = g.muon().weight_decay(),
                                .is_nesterov = g.muon().nesterov(),
                                .num_iterations = static_cast<int>(g.muon().steps())};
        break;
      case config::Group::kLion:
        algorithm = LionOptions{.lr = g.lion().lr(),
                                .beta1 = g.lion().betas(0),
                                .beta2 = g.lion().betas(1),
                                .weight_decay = g.lion().weight_decay()};
        break;
      case config::Group::kScheduleFree:
        algorithm = ScheduleFreeOptions{.lr = g.schedule_free().lr(),
                                        .beta1 = g.schedule_free().betas(0),
                                        .beta2 = g.schedule_free().betas(1),
                                        .eps = g.schedule_free().eps(),
                                        .weight_decay = g.schedule_free().weight_decay()};
        break;
      case config::Group::kSgd:
        algorithm = SgdOptions{.lr = g.sgd().lr(),
                               .momentum = g.sgd().momentum(),
                               .weight_decay = g.sgd().weight_decay(),
                               .is_nesterov = g.sgd().nesterov()};
        break;
      case config::Group::OPTIMISER_NOT_SET: fail_unset("optim.group");
    }
  }
  return groups;
}

ScheduleOptions schedule_options(const Experiment& experiment) {
  const config::Schedule& s = experiment.optim().schedule();
  switch (s.kind_case()) {
    case config::Schedule::kConstant: return {.kind = ScheduleKind::constant, .warmup = s.constant().warmup()};
    case config::Schedule::kLinear:
      return {.kind = ScheduleKind::linear, .warmup = s.linear().warmup(), .floor = s.linear().floor()};
    case config::Schedule::kCosine:
      return {.kind = ScheduleKind::cosine, .warmup = s.cosine().warmup(), .floor = s.cosine().floor()};
    case config::Schedule::kWsd:
      return {.kind = ScheduleKind::wsd,
              .warmup = s.wsd().warmup(),
              .floor = s.wsd().floor(),
              .decay_fraction = s.wsd().decay_fraction(),
              .tail = library_value<config::Tail, DecayTail>(s.wsd().tail())};
    case config::Schedule::kInverseSqrt:
      return {.kind = ScheduleKind::inverse_sqrt, .warmup = s.inverse_sqrt().warmup()};
    case config::Schedule::KIND_NOT_SET: break;
  }
  fail_unset("optim.schedule");
}

DType compute_dtype(const Experiment& experiment) {
  return library_value<config::Compute, DType>(experiment.train().compute());
}

ops::AttentionBackend attention_backend(const Experiment& experiment) {
  return library_value<config::AttentionKernels, ops::AttentionBackend>(experiment.train().attention());
}

int64_t memory_limit(const Experiment& experiment) {
  constexpr double kMost = 1 << 30;  // GiB: more than any device has
  if (!experiment.train().has_memory_gib()) return INT64_MAX;
  return static_cast<int64_t>(std::min(experiment.train().memory_gib(), kMost) * 1073741824);
}

ParallelOptions parallel_options(const Experiment& experiment) {
  const config::Parallel& p = experiment.parallel();
  return {.data = static_cast<int>(p.data()),
          .context = static_cast<int>(p.context()),
          .zero = static_cast<int>(p.zero()),
          .layout = chosen_value<config::Layout, dist::LayoutKind>(p.layout()),
          .scheme = chosen_value<config::Scheme, dist::Scheme>(p.scheme()),
          .block = p.block(),
          .timeout_s = p.timeout_s()};
}

StartOptions start_options(const config::Experiment& experiment) {
  const config::Start& start = experiment.start();
  StartOptions options{.frozen = {start.frozen().begin(), start.frozen().end()},
                       .trained = {start.trained().begin(), start.trained().end()}};
  if (start.has_distill())
    options.distill = {.weight = start.distill().weight(), .temperature = start.distill().temperature()};
  return options;
}

StepSizes step_sizes(const Experiment& experiment) {
  const config::Train& t = experiment.train();
  StepSizes sizes{
      .context = experiment.model().context(), .micro_batch = t.micro_batch(), .tokens_per_step = t.tokens_per_step()};
  sizes.rows_per_step = sizes.tokens_per_step / sizes.context;
  sizes.micro_batches = sizes.rows_per_step / (sizes.micro_batch * experiment.parallel().data());
  sizes.steps = t.tokens() / sizes.tokens_per_step;
  return sizes;
}

}  // namespace weft::train
