// D model width.
#include "src/models/blocks.h"

#include <algorithm>

#include "src/nn/part_output.h"
#include "weft/core/error.h"

namespace weft {

namespace {

std::unique_ptr<Mixer> made_mixer(const LanguageModelOptions& o, const MixerMaker& make, int64_t layer,
                                  const std::shared_ptr<ModelParams>& of_model, Rng rng) {
  PartWatch watch;
  MixerArgs args = mixer_args(o, layer);
  args.of_model = of_model;
  std::unique_ptr<Mixer> mixer = make(args, rng);
  WEFT_CHECK(mixer, str("mixer of layer ", layer, ": its maker returned nothing"), "let it return a part");
  watch.check_named(*mixer, str("mixer of layer ", layer));
  return mixer;
}

// The experts of a umoe network are those of the block's mixer.
FfnOptions ffn_options(FfnOptions ffn, const Mixer& mixer) {
  if (ffn.kind != FfnKind::umoe) return ffn;
  WEFT_CHECK(mixer.num_experts() > 0, "language model: a umoe feed-forward network beside a mixer without experts",
             "use UmoeOptions for every mixer, or another FfnKind");
  if (ffn.experts == 0) ffn.experts = mixer.num_experts();
  return ffn;
}

std::unique_ptr<Ffn> made_ffn(const LanguageModelOptions& o, const Mixer& mixer, Rng rng) {
  if (!o.own_ffn) return make_ffn(ffn_options(o.ffn, mixer), rng);
  PartWatch watch;
  std::unique_ptr<Ffn> ffn = o.own_ffn({.dim = o.dim, .layers = o.layers, .std = o.std, .out_std = o.ffn.out_std}, rng);
  WEFT_CHECK(ffn, "feed-forward network: its maker returned nothing", "let it return a part");
  watch.check_named(*ffn, "feed-forward network");
  return ffn;
}

}  // namespace

LanguageModel::Block::Block(const LanguageModelOptions& o, const MixerMaker& make_mixer, int64_t layer,
                            const std::shared_ptr<ModelParams>& of_model, Rng rng)
    : mixer_norm(o.dim, o.norm, o.own_norm, rng["mixer_norm"]),
      mixer(made_mixer(o, make_mixer, layer, of_model, rng["mixer"])) {
  name_parts({{"mixer_norm", mixer_norm}, {"mixer", *mixer}});
  if (!o.has_ffn) return;
  ffn_norm = std::make_unique<Norm>(o.dim, o.norm, o.own_norm, rng["ffn_norm"]);
  ffn = made_ffn(o, *mixer, rng["ffn"]);
  name_parts({{"ffn_norm", *ffn_norm}, {"ffn", *ffn}});
}

// The sublayers of a block, each with the norm in front.
Var LanguageModel::mix(Block& block, Sum& x, Tokens& tokens) {
  Scope scope(block.name());
  auto run = [this, &block, &tokens](const Var& normed) {
    Var y = block.mixer->forward(normed, tokens);
    {
      Scope mixer_scope("mixer");
      check_output(y, normed, "mixer");
    }
    return tokens.dropout(tokens.settled(y), options_.residual_dropout, "mixer");
  };
  // Only in training: backward of a fixed sequence comes when its Tokens are gone.
  const bool is_recomputed = options_.recompute == Recompute::mixers && tokens.is_training();
  if (!is_recomputed) return run(x.normed(block.mixer_norm));
  return tokens.recomputed([run, &block](const Var& in) { return run(block.mixer_norm(in)); }, x.value());
}

Var LanguageModel::feed_forward(Block& block, Sum& x, Tokens& tokens) {
  Scope scope(block.name());
  const Var normed = x.normed(*block.ffn_norm);
  Scope ffn_scope("ffn");
  const Var y = block.ffn->forward(normed, tokens);
  check_output(y, normed, "feed-forward network");
  return tokens.dropout(y, options_.residual_dropout, "residual");
}

// Massive activations (2402.17762): the largest number of the state behind a block (of a routed stream: that its last sublayer
// reads), and that over the median size.
void LanguageModel::report_activations(Block& block, const Var& x_BTD, Tokens& tokens) {
  Scope scope(block.name());
  tokens.show_state("state", x_BTD);
  if (!tokens.takes_reports()) return;
  NoGrad no_grad;
  auto sizes = cast(abs(x_BTD), kF32).value().to_vector<float>();
  if (tokens.has_padding()) {
    const auto width = static_cast<size_t>(options_.dim);
    size_t kept = 0;
    for (size_t t = 0; t < sizes.size() / width; ++t) {
      if (tokens.is_padding(static_cast<int64_t>(t))) continue;
      std::copy_n(sizes.begin() + static_cast<std::ptrdiff_t>(t * width), width,
                  sizes.begin() + static_cast<std::ptrdiff_t>(kept++ * width));
    }
    sizes.resize(kept * width);
  }
  if (sizes.empty()) return;
  auto middle = sizes.begin() + static_cast<std::ptrdiff_t>(sizes.size() / 2);
  std::nth_element(sizes.begin(), middle, sizes.end());
  double median = static_cast<double>(*middle),
         largest = static_cast<double>(*std::max_element(sizes.begin(), sizes.end()));
  tokens.report_max("max_activation", largest);
  tokens.report_max("max_over_median", largest / std::max(median, 1e-30));
}

// Under Recompute::blocks a standard stream keeps the sum between blocks; another keeps what each sublayer read and wrote.
LanguageModel::Sum LanguageModel::run_blocks(const Var& x_BTD, Tokens& tokens, bool is_recomputed) {
  if (residual_->is_standard()) {
    Sum x(x_BTD);
    for (auto& block : blocks_) {
      auto run = [this, &block, &tokens](Sum& sum) {
        sum.add(mix(*block, sum, tokens));
        if (block->ffn) sum.add(feed_forward(*block, sum, tokens));
      };
      auto run_alone = [run](const Var& in) {
        Sum sum(in);
        run(sum);
        return sum.value();
      };
      if (is_recomputed) x = Sum(tokens.recomputed(run_alone, x.value()));
      else run(x);
      if (tokens.takes_reports() || tokens.shows_states()) report_activations(*block, x.value(), tokens);
    }
    return x;
  }
  std::unique_ptr<ResidualStream> stream = residual_->start(x_BTD, tokens);
  auto check_state = [&](const Var& state) {
    Scope scope(residual_->name());
    check_output(state, x_BTD, "residual stream");
  };
  auto sublayer = [&](auto run, Block* block) {
    Var h = stream->input();
    check_state(h);
    if (block) report_activations(*block, h, tokens);
    auto run_alone = [run](const Var& in) {
      Sum sum(in);
      return run(sum);
    };
    stream->write(is_recomputed ? tokens.recomputed(run_alone, h) : run_alone(h));
  };
  for (auto& block : blocks_) {
    sublayer([this, &block, &tokens](Sum& h) { return mix(*block, h, tokens); }, block->ffn ? nullptr : block.get());
    if (!block->ffn) continue;
    sublayer([this, &block, &tokens](Sum& h) { return feed_forward(*block, h, tokens); }, block.get());
  }
  const Var out = stream->output();
  check_state(out);
  return Sum(out);
}

}  // namespace weft
