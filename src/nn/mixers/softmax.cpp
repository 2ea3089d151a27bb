// Softmax attention (Vaswani et al., 1706.03762) with grouped keys and values (Ainslie et al., 2305.13245).
// B batch, T tokens, D model width, H query heads, G key/value heads, K head width.
#include <algorithm>

#include "weft/core/error.h"
#include "weft/nn/mixers.h"

namespace weft {

namespace {

SoftmaxOptions checked(SoftmaxOptions o) {
  WEFT_CHECK(o.dim >= 1 && o.heads >= 1, str("softmax: dim ", o.dim, ", heads ", o.heads), "both must be 1 or more");
  if (o.kv_heads == 0) o.kv_heads = o.heads;
  WEFT_CHECK(o.kv_heads >= 1 && o.heads % o.kv_heads == 0,
             str("softmax: heads ", o.heads, " is not a multiple of kv_heads ", o.kv_heads),
             "choose kv_heads among the divisors of heads");
  if (o.head_dim == 0) {
    WEFT_CHECK(o.dim % o.heads == 0, str("softmax: dim ", o.dim, " is not a multiple of heads ", o.heads),
               "set head_dim, or change heads");
    o.head_dim = o.dim / o.heads;
  }
  WEFT_CHECK(!o.rotary || o.head_dim % 2 == 0, str("softmax: head_dim ", o.head_dim, " is odd"),
             "rotation needs an even head_dim");
  WEFT_CHECK(o.window >= 0 && o.softcap >= 0 && o.dropout >= 0 && o.dropout < 1,
             str("softmax: window ", o.window, ", softcap ", o.softcap, ", dropout ", o.dropout),
             "window and softcap are 0 (off) or positive, dropout lies in [0, 1)");
  return o;
}

class Softmax final : public Mixer {
 public:
  Softmax(const SoftmaxOptions& options, Rng rng)
      : o_(checked(options)),
        q_(o_.dim, o_.heads * o_.head_dim, rng["q"], {o_.has_bias, o_.std}),
        k_(o_.dim, o_.kv_heads * o_.head_dim, rng["k"], {o_.has_bias, o_.std}),
        v_(o_.dim, o_.kv_heads * o_.head_dim, rng["v"], {o_.has_bias, o_.std}),
        out_(o_.heads * o_.head_dim, o_.dim, rng["out"], {o_.has_bias, o_.out_std}) {
    name_parts({{"q", q_}, {"k", k_}, {"v", v_}, {"out", out_}});
    if (!o_.qk_norm) return;
    q_norm_ = std::make_unique<Norm>(o_.head_dim, NormOptions{NormKind::rms, o_.norm_eps});
    k_norm_ = std::make_unique<Norm>(o_.head_dim, NormOptions{NormKind::rms, o_.norm_eps});
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
    if (o_.rotary) {
      const ops::RotaryTable& table = tokens.rotary_table(o_.head_dim, *o_.rotary);
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
  double keys_per_query(int64_t context) const override {
    double n = static_cast<double>(context),
           w = static_cast<double>(std::min(o_.window ? o_.window : context, context));
    return (w * (w + 1) / 2 + (n - w) * w) / n;
  }

 private:
  SoftmaxOptions o_;
  Linear q_, k_, v_, out_;
  std::unique_ptr<Norm> q_norm_, k_norm_;
};

}  // namespace

std::unique_ptr<Mixer> make_softmax(const SoftmaxOptions& options, Rng rng) {
  return std::make_unique<Softmax>(options, rng);
}

Var split_heads(const Var& x, int64_t heads) { return reshape(x, {x.size(0), x.size(1), heads, x.size(2) / heads}); }
Var merge_heads(const Var& x) { return reshape(x, {x.size(0), x.size(1), x.size(2) * x.size(3)}); }

}  // namespace weft
