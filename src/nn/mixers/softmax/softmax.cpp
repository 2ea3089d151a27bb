// Softmax attention (Vaswani et al., 1706.03762) with grouped keys and values (Ainslie et al., 2305.13245) and its options, in the
// order that include/weft/nn/mixers/softmax.h gives.
// B batch, T tokens, D model width, H query heads, G key/value heads, K head width, C components.
#include "src/nn/mixers/softmax/softmax.h"

#include <array>
#include <cmath>

#include "src/nn/experts/mixture.h"
#include "src/nn/mixers/softmax/affine.h"
#include "src/nn/mixers/softmax/gate.h"
#include "src/nn/mixers/softmax/sink.h"
#include "src/nn/mixers/softmax/temperature.h"

namespace weft {

namespace {

// ALiBi's slopes: 2^(-8 h / H) for a power of two; otherwise those of the largest one below, then every second of twice as many.
Tensor alibi_slopes(int64_t heads) {
  int64_t power = 1;
  while (2 * power <= heads) power *= 2;
  std::vector<float> slopes;
  for (int64_t h = 1; h <= power; ++h)
    slopes.push_back(std::exp2(-8 * static_cast<float>(h) / static_cast<float>(power)));
  for (int64_t h = 1; static_cast<int64_t>(slopes.size()) < heads; h += 2)
    slopes.push_back(std::exp2(-8 * static_cast<float>(h) / static_cast<float>(2 * power)));
  return to(Tensor::from(std::span<const float>(slopes), {heads}), default_device()).value();
}

// Component n feeds heads n G / C .. : the identity for C = G.
Tensor block_replication(int64_t components, int64_t heads) {
  Tensor mix = Tensor::zeros({components, heads}, kF32, Device::cpu());
  for (int64_t h = 0; h < heads; ++h) mix.mutable_data<float>()[h * components / heads * heads + h] = 1;
  return to(mix, default_device()).value();
}

// x [B, T, H, K] with one channel more that holds `value`, broadcast.
Var with_channel(const Var& x_BTHK, const Var& value) {
  const Var parts[] = {x_BTHK, expand(value, {x_BTHK.size(0), x_BTHK.size(1), x_BTHK.size(2), 1})};
  return concatenate(parts, -1);
}

// x / sqrt(sum of squares of its last dimension)
Var unit(const Var& x, double eps) {
  const auto width = static_cast<double>(x.size(-1));
  Var ones = Tensor::full({x.size(-1)}, 1 / std::sqrt(width), x.dtype(), x.device());
  return rms_norm(x, ones, eps / width);
}

WeightKind weight_kind(const SoftmaxOptions& o, const MixerArgs& args) {
  bool is_end = args.layer == 0 || args.layer == args.layers - 1,
       is_signed = o.weights.kind == WeightKind::signed_softmax;
  return is_signed && o.weights.keeps_ends && is_end ? WeightKind::softmax : o.weights.kind;
}

class Softmax final : public Mixer {
 public:
  Softmax(const SoftmaxOptions& options, const MixerArgs& args, Rng rng)
      : o_(completed(options, args)),
        args_(args),
        kind_(weight_kind(o_, args)),
        q_(args.dim, o_.heads * o_.head_dim, rng["q"], {has_input_bias(), args.std}),
        k_(args.dim, num_components() * o_.head_dim, rng["k"], {has_input_bias(), args.std}),
        v_(args.dim, num_components() * o_.head_dim, rng["v"], {has_input_bias(), args.std}),
        out_(o_.heads * o_.head_dim, args.dim, rng["out"], {o_.has_bias, args.out_std}) {
    name_parts({{"q", q_}, {"k", k_}, {"v", v_}, {"out", out_}});
    if (o_.position == MixerPosition::alibi) alibi_slopes_ = alibi_slopes(o_.heads);
    add_scores();
    add_heads(rng);
  }

  void to(Device device) override {
    Module::to(device);
    if (alibi_slopes_.defined()) alibi_slopes_ = weft::to(alibi_slopes_, device).value();
  }

  Var forward(const Var& x_BTD, Tokens& tokens) override {
    Scope scope(name());
    auto [q_BTHK, k_BTGK, v_BTGK] = project(x_BTD, tokens);
    HeadMixture::Choice heads = mixture_ ? mixture_->choose(x_BTD, q_BTHK, tokens) : HeadMixture::Choice();
    Var sink = sink_ ? sink_->scores(q_BTHK, scale(), o_.softcap) : Var();
    auto [y_BTHK, lse_BTH] = attend(q_BTHK, k_BTGK, v_BTGK, heads, sink, tokens);
    if (sink_) y_BTHK = (*sink_)(y_BTHK, lse_BTH, sink);
    if (affine_) y_BTHK = (*affine_)(y_BTHK, v_BTGK, x_BTD, tokens);
    if (head_norm_) y_BTHK = (*head_norm_)(y_BTHK);
    if (o_.has_out_silu) y_BTHK = silu(y_BTHK);
    y_BTHK = gated(GatePosition::out, y_BTHK, x_BTD, tokens);
    if (mixture_) y_BTHK = y_BTHK * unsqueeze(cast(heads.weights_BTH, y_BTHK.dtype()), -1);
    if (own_heads_) y_BTHK = own_heads_->forward(y_BTHK, x_BTD, tokens);
    Var y_BTD = out_(merge_heads(tokens.heads(y_BTHK)));
    if (!gate(GatePosition::layer)) return y_BTD;
    return merge_heads(gated(GatePosition::layer, unsqueeze(y_BTD, 2), x_BTD, tokens));
  }

  double flops_per_token(double keys) const override {
    return 12.0 * static_cast<double>(o_.heads * o_.head_dim) * keys;
  }
  double keys_per_query(int64_t context) const override { return causal_keys(context, o_.window); }
  int64_t num_idle_params() const override {
    const HeadMixtureOptions& m = o_.head_mixture;
    return m.active > 0 ? (o_.heads - m.shared - m.active) * 2 * o_.head_dim * args_.dim : 0;
  }

 private:
  static DType wide(const Var& x) { return x.dtype() == kF64 ? kF64 : kF32; }
  struct Projected {
    Var q_BTHK, k_BTGK, v_BTGK;
  };

  bool has_input_bias() const { return o_.has_bias || o_.has_input_bias; }
  int64_t num_components() const { return o_.components > 0 ? o_.components : o_.kv_heads; }
  double scale() const { return l2_scale_ ? 1 : 1 / std::sqrt(static_cast<double>(o_.head_dim)); }

  // Parts before the core.
  void add_scores() {
    if (o_.components > 0) {
      key_mix_ = std::make_unique<Param>(block_replication(o_.components, o_.kv_heads));
      value_mix_ = std::make_unique<Param>(block_replication(o_.components, o_.kv_heads));
      name_parts({{"key_mix", *key_mix_}, {"value_mix", *value_mix_}});
    }
    if (o_.qk_norm == QkNorm::rms) {
      q_norm_ = std::make_unique<Norm>(o_.head_dim, NormOptions{NormKind::rms, args_.norm_eps});
      k_norm_ = std::make_unique<Norm>(o_.head_dim, NormOptions{NormKind::rms, args_.norm_eps});
      name_parts({{"q_norm", *q_norm_}, {"k_norm", *k_norm_}});
    }
    if (o_.qk_norm == QkNorm::l2) {
      auto n = static_cast<double>(std::max<int64_t>(args_.context, 2));
      l2_scale_ = std::make_unique<Param>(Tensor::full({1}, std::log2(n * n - n)));
      name_part({"scale", *l2_scale_});
    }
    if (o_.has_score_scale) {
      score_scale_ = std::make_unique<Param>(Tensor::full({o_.heads}, 1));
      name_part({"score_scale", *score_scale_});
    }
    if (o_.has_score_shift) {
      score_shift_ = std::make_unique<Param>(Tensor::zeros({o_.heads}, kF32));
      name_part({"score_shift", *score_shift_});
    }
    if (o_.temperature.is_on()) {
      temperature_ = std::make_unique<Temperature>(o_.temperature, o_.heads, o_.kv_heads, o_.head_dim);
      name_part({"temperature", *temperature_});
    }
  }

  // Gates and what comes after the core.
  void add_heads(Rng rng) {
    for (const GateOptions& gate : o_.gates) {
      bool is_kv = gate.position == GatePosition::values || gate.position == GatePosition::keys;
      bool is_layer = gate.position == GatePosition::layer;
      int64_t heads = is_layer ? 1 : is_kv ? o_.kv_heads : o_.heads, width = is_layer ? args_.dim : o_.head_dim;
      std::string name = str("gate_", name_of(gate.position));
      gates_.push_back(std::make_unique<Gate>(gate, args_.dim, heads, width, args_.std, rng[name]));
      name_part({name, *gates_.back()});
    }
    if (o_.sink.kind != SinkKind::none) {
      sink_ = std::make_unique<Sink>(o_.sink, o_.heads, o_.head_dim, o_.head_dim, kind_ == WeightKind::signed_softmax,
                                     args_.std, rng["sink"]);
      name_part({"sink", *sink_});
    }
    if (o_.affine.is_on) {
      affine_ =
          std::make_unique<Affine>(o_.affine, args_.dim, o_.heads, args_.context, o_.window, args_.std, rng["affine"]);
      name_part({"affine", *affine_});
    }
    if (o_.head_mixture.active > 0) {
      mixture_ = std::make_unique<HeadMixture>(o_.head_mixture, o_.heads, args_, rng["head_mixture"]);
      name_part({"head_mixture", *mixture_});
    }
    if (o_.own_heads) {
      own_heads_ = o_.own_heads({.dim = args_.dim,
                                 .heads = o_.heads,
                                 .head_dim = o_.head_dim,
                                 .layer = args_.layer,
                                 .layers = args_.layers,
                                 .std = args_.std},
                                rng["own_heads"]);
      name_part({"own_heads", *own_heads_});
    }
    if (o_.has_head_norm) {
      head_norm_ = std::make_unique<Norm>(o_.head_dim, NormOptions{NormKind::rms, args_.norm_eps});
      name_part({"head_norm", *head_norm_});
    }
  }

  // The core, with what divides additive weights behind it.
  std::array<Var, 2> attend(Var q_BTHK, Var k_BTGK, Var v_BTGK, const HeadMixture::Choice& heads, const Var& sink,
                            Tokens& tokens) const {
    const WeightOptions& w = o_.weights;
    auto call = [&](const ops::AttentionOptions& core) {
      if (o_.own_attention) return o_.own_attention(tokens, q_BTHK, k_BTGK, v_BTGK, core);
      return mixture_ ? mixture_->attend(q_BTHK, k_BTGK, v_BTGK, heads, tokens, core, sink)
                      : tokens.attend(q_BTHK, k_BTGK, v_BTGK, core, sink);
    };
    ops::AttentionOptions core{.scale = scale(),
                               .mask = {.window = o_.window},
                               .score = {.softcap = o_.softcap, .alibi_slopes = alibi_slopes_},
                               .dropout = o_.dropout};
    if (o_.dropout > 0) core.dropout_rng = tokens.random("attention");
    add_bias(q_BTHK, k_BTGK, tokens);
    if (kind_ == WeightKind::signed_softmax) core.normaliser = ops::Normaliser::signed_softmax;
    if (kind_ == WeightKind::softmax || kind_ == WeightKind::signed_softmax) return call(core);
    core.normaliser = ops::Normaliser::sum;
    core.score.activation = kind_ == WeightKind::sigmoid ? ops::ScoreActivation::sigmoid
                            : kind_ == WeightKind::relu  ? ops::ScoreActivation::relu
                            : kind_ == WeightKind::elu1  ? ops::ScoreActivation::elu1
                                                         : ops::ScoreActivation::taylor2;
    if (kind_ == WeightKind::sigmoid && w.bias == SigmoidBias::context)
      core.score.shift = -std::log(static_cast<double>(args_.context));
    Var one = Tensor::full({}, 1, v_BTGK.dtype(), v_BTGK.device());
    const bool drops = core.dropout > 0 && tokens.is_training();
    if (!w.is_divided_by_sum || drops) {
      Var out = over_count(call(core)[0], tokens);
      if (!w.is_divided_by_sum) return {out, Var()};
      // What is dropped is missing from the result and not from the sum, as under softmax.
      core.dropout = 0;
      one = expand(one, {k_BTGK.size(0), k_BTGK.size(1), k_BTGK.size(2), 1}) * 1.0;
      return {out / (over_count(tokens.attend_part(q_BTHK, k_BTGK, one, core)[0], tokens) + 1e-8), Var()};
    }
    v_BTGK = with_channel(v_BTGK, one);
    Var out = over_count(call(core)[0], tokens), sum = slice(out, -1, o_.head_dim, o_.head_dim + 1);
    return {slice(out, -1, 0, o_.head_dim) / (sum + 1e-8), Var()};
  }

  // Sums of relu weights over n^power.
  Var over_count(const Var& out_BTHV, const Tokens& tokens) const {
    const double power = o_.weights.power;
    if (kind_ != WeightKind::relu || power == 0) return out_BTHV;
    Var n_BT = cast(Var(tokens.visible_keys(o_.window)), wide(out_BTHV));
    Var factor = power == 1 ? Var(Tensor::full({}, 1, n_BT.dtype(), n_BT.device())) / n_BT : exp(log(n_BT) * -power);
    return out_BTHV * unsqueeze(unsqueeze(cast(factor, out_BTHV.dtype()), -1), -1);
  }

  // scale * (q.k + bias / scale * 1): one channel more for what is added to the scores of a query.
  void add_bias(Var& q_BTHK, Var& k_BTGK, const Tokens& tokens) const {
    Var bias;
    if (kind_ == WeightKind::sigmoid && o_.weights.bias == SigmoidBias::row) {
      Var n_BT = cast(Var(tokens.visible_keys(o_.window)), wide(q_BTHK));
      bias = unsqueeze(unsqueeze(-log(n_BT), -1), -1);
    }
    if (score_shift_ && kind_ != WeightKind::softmax) {
      Var shift = cast(unsqueeze(*score_shift_, -1), wide(q_BTHK));
      bias = bias.defined() ? bias + shift : shift;
    }
    if (!bias.defined()) return;
    q_BTHK = with_channel(q_BTHK, cast(bias * (1 / scale()), q_BTHK.dtype()));
    k_BTGK = with_channel(k_BTGK, Tensor::full({}, 1, k_BTGK.dtype(), k_BTGK.device()));
  }

  // Mixing heads of x W is a projection with mixed rows of W: nothing per token.
  Var mixed(Linear& projection, const Param& mix_CG, const Var& x_BTD) const {
    Var rows = reshape(projection.weight(), {o_.components, o_.head_dim * args_.dim});
    Var weight = matmul(mix_CG, rows, {.transpose_a = true});
    return linear(x_BTD, reshape(weight, {o_.kv_heads * o_.head_dim, args_.dim}));
  }

  Projected project(const Var& x_BTD, Tokens& tokens) {
    Var q = split_heads(q_(x_BTD), o_.heads);
    Var k = split_heads(key_mix_ ? mixed(k_, *key_mix_, x_BTD) : k_(x_BTD), o_.kv_heads);
    Var v = split_heads(value_mix_ ? mixed(v_, *value_mix_, x_BTD) : v_(x_BTD), o_.kv_heads);
    v = gated(GatePosition::values, v, x_BTD, tokens);
    if (temperature_) v = temperature_->values(v);
    if (q_norm_) {
      q = (*q_norm_)(q);
      k = (*k_norm_)(k);
    } else if (l2_scale_) {
      q = unit(q, args_.norm_eps);
      k = unit(k, args_.norm_eps);
    }
    k = gated(GatePosition::keys, k, x_BTD, tokens);
    q = gated(GatePosition::queries, q, x_BTD, tokens);
    if (temperature_) q = temperature_->queries(q, tokens);
    // Learned factors of the scores: gates and the temperature do not see them.
    if (l2_scale_) q = q * cast(*l2_scale_, q.dtype());
    if (score_scale_) q = q * unsqueeze(cast(*score_scale_, q.dtype()), -1);
    if (args_.rotary && o_.position == MixerPosition::model) {
      const ops::RotaryTable& table = tokens.rotary_table(o_.head_dim, *args_.rotary);
      q = rotary(q, table);
      k = rotary(k, table);
    }
    return {q, k, v};
  }

  const Gate* gate(GatePosition position) const {
    for (size_t i = 0; i < gates_.size(); ++i)
      if (o_.gates[i].position == position) return gates_[i].get();
    return nullptr;
  }
  Var gated(GatePosition position, const Var& y, const Var& x_BTD, Tokens& tokens) const {
    const Gate* found = gate(position);
    return found ? (*found)(y, x_BTD, tokens) : y;
  }

  SoftmaxOptions o_;
  MixerArgs args_;
  WeightKind kind_;
  Linear q_, k_, v_, out_;
  Tensor alibi_slopes_;
  std::unique_ptr<Param> key_mix_, value_mix_;  // [C, G]
  std::unique_ptr<Norm> q_norm_, k_norm_, head_norm_;
  std::unique_ptr<Param> l2_scale_, score_scale_, score_shift_;
  std::unique_ptr<Temperature> temperature_;
  std::vector<std::unique_ptr<Gate>> gates_;  // as o_.gates
  std::unique_ptr<Sink> sink_;
  std::unique_ptr<Affine> affine_;
  std::unique_ptr<HeadMixture> mixture_;
  std::unique_ptr<OwnHeadMixture> own_heads_;
};

}  // namespace

std::unique_ptr<Mixer> SoftmaxOptions::operator()(const MixerArgs& args, Rng rng) const {
  return std::make_unique<Softmax>(*this, args, rng);
}

}  // namespace weft
