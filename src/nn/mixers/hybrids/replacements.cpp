// What takes the place of softmax attention in layers that need less (LayerBoost, 2604.22050), with projections of the same names:
//   linear     f = elu + 1,  y_i = sum_j f(rot(q_i)) f(rot(k_j)) v_j / sum_j f(rot(q_i)) f(rot(k_j)),  over the last W tokens j; or without
//              rot
//   identity   y_i = v_i: every token attends to itself alone; no queries and no keys
// B batch, T tokens, D model width, H heads, G key/value heads, K head width.
#include "src/nn/mixers/recurrent/parts.h"
#include "weft/core/error.h"
#include "weft/nn/mixers/hybrids.h"
#include "weft/nn/mixers/projected.h"

namespace weft {

namespace {

class LinearWindow final : public ProjectedMixer {
 public:
  LinearWindow(const ReplacementOptions& o, const MixerArgs& args, Rng rng)
      : ProjectedMixer("linear window", {o.heads, o.kv_heads, o.head_dim},
                       o.position == MixerPosition::none ? recurrent::unrotated(args) : args, rng),
        window_(o.window) {}

  Var forward(const Var& x_BTD, Tokens& tokens) override {
    Scope scope(name());
    auto features = [&](const Var& x) { return recurrent::elu1(rotated(x, args_, tokens)); };
    const Var v_BTGK = values(x_BTD);
    Shape one = v_BTGK.shape();
    one[3] = 1;
    const Var parts[] = {v_BTGK, Tensor::full(one, 1, v_BTGK.dtype(), v_BTGK.device())};  // and the sum of weights
    const Var q_BTHK = features(queries(x_BTD)), k_BTGK = features(keys(x_BTD));
    const ops::AttentionOptions core{.scale = 1, .mask = {.window = window_}, .normaliser = ops::Normaliser::sum};
    Var sums = tokens.attend_part(q_BTHK, k_BTGK, concatenate(parts, -1), core)[0];
    if (tokens.is_watched())  // with values as whoever watches knows them
      tokens.observe(tokens.queries(q_BTHK), tokens.keys(k_BTGK, v_BTGK, {.window = window_, .serves_one_call = true}),
                     {}, core, {});
    return written(slice(sums, -1, 0, s_.head_dim) / (slice(sums, -1, s_.head_dim, s_.head_dim + 1) + 1e-8), tokens);
  }

  double keys_per_query(int64_t context) const override { return causal_keys(context, window_); }
  double flops_per_token(double keys) const override {
    return 12.0 * static_cast<double>(s_.heads * s_.head_dim) * keys;
  }

 private:
  int64_t window_;
};

class Identity final : public Mixer {
 public:
  Identity(const HeadSizes& sizes, const MixerArgs& args, Rng rng)
      : s_(sizes),
        v_(args.dim, s_.kv_heads * s_.head_dim, rng["v"], {.std = args.std}),
        out_(s_.heads * s_.head_dim, args.dim, rng["out"], {.std = args.out_std}) {
    name_parts({{"v", v_}, {"out", out_}});
  }

  Var forward(const Var& x_BTD, Tokens& tokens) override {
    Scope scope(name());
    const int64_t B = x_BTD.size(0), T = x_BTD.size(1), each = s_.heads / s_.kv_heads;
    Var v = unsqueeze(split_heads(v_(x_BTD), s_.kv_heads), 3);
    Var y = reshape(expand(v, {B, T, s_.kv_heads, each, s_.head_dim}), {B, T, s_.heads, s_.head_dim});
    return out_(merge_heads(tokens.heads(y)));
  }

  double keys_per_query(int64_t) const override { return 1; }
  double flops_per_token(double) const override { return 0; }

 private:
  HeadSizes s_;
  Linear v_, out_;
};

}  // namespace

std::unique_ptr<Mixer> ReplacementOptions::operator()(const MixerArgs& args, Rng rng) const {
  WEFT_CHECK(position != MixerPosition::alibi,
             "replacement: position alibi, which is added to the scores of softmax, and here there are none",
             "use model (rotated as model.position says) or none");
  if (kind == ReplacementKind::linear) {
    WEFT_CHECK(window >= 1, str("linear window: window ", window), "use 1 (the token itself) or more");
    return std::make_unique<LinearWindow>(*this, args, rng);
  }
  WEFT_CHECK(position == MixerPosition::model,
             "replacement: kind identity with position none, of which it knows nothing",
             "leave position out: identity has no queries and keys to rotate");
  const HeadSizes sizes = completed("identity", {heads, kv_heads, head_dim}, recurrent::unrotated(args));
  return std::make_unique<Identity>(sizes, args, rng);
}

}  // namespace weft
