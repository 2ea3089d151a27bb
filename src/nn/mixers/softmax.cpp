// Softmax attention (Vaswani et al., 1706.03762) with grouped keys and values (Ainslie et al., 2305.13245).
// B batch, T tokens, D model width, H query heads, G key/value heads, K head width.
#include "weft/nn/mixers/softmax.h"

#include "weft/core/error.h"

namespace weft {

namespace {

SoftmaxOptions checked(SoftmaxOptions o, const MixerArgs& args) {
  WEFT_CHECK(args.dim >= 1 && o.heads >= 1, str("softmax: dim ", args.dim, ", heads ", o.heads),
             "both must be 1 or more");
  if (o.kv_heads == 0) o.kv_heads = o.heads;
  WEFT_CHECK(o.kv_heads >= 1 && o.heads % o.kv_heads == 0,
             str("softmax: heads ", o.heads, " is not a multiple of kv_heads ", o.kv_heads),
             "choose kv_heads among the divisors of heads");
  if (o.head_dim == 0) {
    WEFT_CHECK(args.dim % o.heads == 0, str("softmax: dim ", args.dim, " is not a multiple of heads ", o.heads),
               "set head_dim, or change heads");
    o.head_dim = args.dim / o.heads;
  }
  WEFT_CHECK(!args.rotary || o.head_dim % 2 == 0, str("softmax: head_dim ", o.head_dim, " is odd"),
             "rotation needs an even head_dim");
  WEFT_CHECK(o.window >= 0 && o.softcap >= 0 && o.dropout >= 0 && o.dropout < 1,
             str("softmax: window ", o.window, ", softcap ", o.softcap, ", dropout ", o.dropout),
             "window and softcap are 0 (off) or positive, dropout lies in [0, 1)");
  return o;
}

class Softmax final : public Mixer {
 public:
  Softmax(const SoftmaxOptions& options, const MixerArgs& args, Rng rng)
      : o_(checked(options, args)),
        rotary_(args.rotary),
        q_(args.dim, o_.heads * o_.head_dim, rng["q"], {o_.has_bias, args.std}),
        k_(args.dim, o_.kv_heads * o_.head_dim, rng["k"], {o_.has_bias, args.std}),
        v_(args.dim, o_.kv_heads * o_.head_dim, rng["v"], {o_.has_bias, args.std}),
        out_(o_.heads * o_.head_dim, args.dim, rng["out"], {o_.has_bias, args.out_std}) {
    name_parts({{"q", q_}, {"k", k_}, {"v", v_}, {"out", out_}});
    if (!o_.qk_norm) return;
    q_norm_ = std::make_unique<Norm>(o_.head_dim, NormOptions{NormKind::rms, args.norm_eps});
    k_norm_ = std::make_unique<Norm>(o_.head_dim, NormOptions{NormKind::rms, args.norm_eps});
    name_parts({{"q_norm", *q_norm_}, {"k_norm", *k_norm_}});
  }

  Var forward(const Var& x_BTD, Tokens& tokens) override {
    Scope scope(name());
    Var q_BTHK = split_heads(q_(x_BTD), o_.heads);
    Var k_BTGK = split_heads(k_(x_BTD), o_.kv_heads);
    Var v_BTGK = split_heads(v_(x_BTD), o_.kv_heads);
    if (q_norm_) {
      q_BTHK = (*q_norm_)(q_BTHK);
      k_BTGK = (*k_norm_)(k_BTGK);
    }
    if (rotary_) {
      const ops::RotaryTable& table = tokens.rotary_table(o_.head_dim, *rotary_);
      q_BTHK = rotary(q_BTHK, table);
      k_BTGK = rotary(k_BTGK, table);
    }
    ops::AttentionOptions attention{
        .mask = {.window = o_.window}, .score = {.softcap = o_.softcap}, .dropout = o_.dropout};
    if (o_.dropout > 0) attention.dropout_rng = tokens.random("attention");
    auto [y_BTHK, lse_BTH] = tokens.attend(q_BTHK, k_BTGK, v_BTGK, attention);
    return out_(merge_heads(y_BTHK));
  }

  double flops_per_token(double keys) const override {
    return 12.0 * static_cast<double>(o_.heads * o_.head_dim) * keys;
  }
  double keys_per_query(int64_t context) const override { return causal_keys(context, o_.window); }

 private:
  SoftmaxOptions o_;
  std::optional<ops::RotaryOptions> rotary_;
  Linear q_, k_, v_, out_;
  std::unique_ptr<Norm> q_norm_, k_norm_;
};

}  // namespace

std::unique_ptr<Mixer> SoftmaxOptions::operator()(const MixerArgs& args, Rng rng) const {
  return std::make_unique<Softmax>(*this, args, rng);
}

}  // namespace weft
