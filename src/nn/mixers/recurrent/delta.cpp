// The delta rule: DeltaNet (2406.06484), Gated DeltaNet (2412.06464), Kimi Delta Attention (2510.26692).
//   S_t = (1 - b_t k_t^T k_t) a_t S_(t-1) + b_t k_t^T v_t,   o_t = q_t S_t / sqrt(K)
// of q = l2(silu(conv(x Wq))), k alike, v = silu(conv(x Wv)), b = sigmoid(x Wb), or twice that. log a is
//   none      0
//   head      -exp(A_h) softplus(x Wa + d)_h
//   channel   -exp(A_h) softplus((x F1) F2 + d)_hc, or bounded -5 sigmoid(exp(A_h) ((x F1) F2 + d))_hc
// and the output RMSNorm(o) Wo, with a decay per head RMSNorm(o) * silu(x Wg), per channel RMSNorm(o) * sigmoid((x G1) G2 + c).
// B batch, T tokens, D model width, G key heads, H value heads, K key width, V value width.
#include "src/nn/mixers/recurrent/parts.h"
#include "weft/core/error.h"
#include "weft/nn/mixers/recurrent.h"

namespace weft {

namespace {

using namespace recurrent;

DeltaOptions completed(DeltaOptions o, int64_t dim) {
  const bool is_per_head = o.decay == DeltaDecay::head;
  if (o.key_heads == 0) o.key_heads = o.heads;
  WEFT_CHECK(o.heads >= 1 && o.key_heads >= 1 && o.heads % o.key_heads == 0,
             str("delta: heads ", o.heads, ", key_heads ", o.key_heads),
             "choose key_heads among the divisors of heads");
  WEFT_CHECK(o.head_dim >= 0 && o.value_dim >= 0, str("delta: head_dim ", o.head_dim, ", value_dim ", o.value_dim),
             "use 0 (filled in) or more");
  if (o.head_dim == 0) {
    const int64_t width = is_per_head ? 3 * dim / 4 : dim;
    WEFT_CHECK((!is_per_head || dim % 4 == 0) && width % o.heads == 0 && width >= o.heads,
               str("delta: keys of ", o.heads, " heads for dim ", dim), "set head_dim, or change heads");
    o.head_dim = width / o.heads;
  }
  if (o.value_dim == 0) o.value_dim = is_per_head ? 2 * o.head_dim : o.head_dim;
  check_kernel("delta", o.kernel);
  WEFT_CHECK(o.norm_eps > 0, str("delta: norm_eps ", o.norm_eps), "use a small number above 0");
  WEFT_CHECK(!o.has_safe_gate || o.decay == DeltaDecay::channel, "delta: a safe gate without a decay per channel",
             "set decay to channel, or leave safe_gate out");
  return o;
}

class Delta final : public Mixer {
 public:
  Delta(const DeltaOptions& o, const MixerArgs& args, Rng rng)
      : o_(o),
        dim_(args.dim),
        q_(dim_, o.key_heads * o.head_dim, rng["q"], {.std = args.std}),
        k_(dim_, o.key_heads * o.head_dim, rng["k"], {.std = args.std}),
        v_(dim_, o.heads * o.value_dim, rng["v"], {.std = args.std}),
        strength_(dim_, o.heads, rng["strength"], {.std = args.std}),
        head_norm_(o.value_dim, {.eps = o.norm_eps}),
        out_(o.heads * o.value_dim, dim_, rng["out"], {.std = args.out_std}) {
    name_parts({{"q", q_}, {"k", k_}, {"v", v_}, {"strength", strength_}, {"head_norm", head_norm_}, {"out", out_}});
    if (o.kernel > 0) {
      auto conv = [&](const char* what, std::unique_ptr<ShortConv>& to, int64_t channels) {
        to = std::make_unique<ShortConv>(channels, o.kernel, rng[what]);
        name_part({what, *to});
      };
      conv("q_conv", q_conv_, o.key_heads * o.head_dim);
      conv("k_conv", k_conv_, o.key_heads * o.head_dim);
      conv("v_conv", v_conv_, o.heads * o.value_dim);
    }
    add_decay(args, rng);
  }

  Var forward(const Var& x_BTD, Tokens& tokens) override {
    Scope scope(name());
    auto made = [&](const Linear& projection, const std::unique_ptr<ShortConv>& conv, int64_t heads) {
      Var y = projection(x_BTD);
      return split_heads(conv ? (*conv)(y, tokens) : silu(y), heads);
    };
    Var strength_BTH = sigmoid(wide_linear(x_BTD, strength_));
    if (o_.has_negative_eigenvalues) strength_BTH = strength_BTH * 2.0;
    Var o = tokens.recur({.q_BTGK = l2_normed(made(q_, q_conv_, o_.key_heads)),
                          .k_BTGK = l2_normed(made(k_, k_conv_, o_.key_heads)),
                          .v_BTHV = made(v_, v_conv_, o_.heads),
                          .log_decay = log_decay(x_BTD),
                          .beta = strength_BTH},
                         {.scale = inverse_root(o_.head_dim)});
    Var y_BTHV = head_norm_(o);
    if (o_.decay == DeltaDecay::head) y_BTHV = y_BTHV * split_heads(silu((*gate_)(x_BTD)), o_.heads);
    if (o_.decay == DeltaDecay::channel)
      y_BTHV = y_BTHV * split_heads(sigmoid((*gate_)((*gate_down_)(x_BTD))), o_.heads);
    return out_(merge_heads(tokens.heads(y_BTHV)));
  }

  double flops_per_token(double) const override { return recurrence_flops(o_.heads, o_.head_dim, o_.value_dim, true); }

 private:
  void add_decay(const MixerArgs& args, Rng rng) {
    if (o_.decay == DeltaDecay::none) return;
    auto linear = [&](const char* what, std::unique_ptr<Linear>& to, int64_t in, int64_t out, bool has_bias = false) {
      to = std::make_unique<Linear>(in, out, rng[what], LinearOptions{.has_bias = has_bias, .std = args.std});
      name_part({what, *to});
    };
    const bool is_per_head = o_.decay == DeltaDecay::head;
    const int64_t count = is_per_head ? o_.heads : o_.heads * o_.head_dim, values = o_.heads * o_.value_dim;
    if (is_per_head) {
      linear("decay", decay_, dim_, count);
      linear("gate", gate_, dim_, values);
    } else {
      linear("decay_down", decay_down_, dim_, o_.value_dim);
      linear("decay", decay_, o_.value_dim, count);
      linear("gate_down", gate_down_, dim_, o_.value_dim);
      linear("gate", gate_, o_.value_dim, values, true);
    }
    log_rate_ =
        std::make_unique<Param>(o_.has_safe_gate ? Tensor::zeros({o_.heads})
                                                 : log_rates(o_.heads, is_per_head ? 1e-4 : 1, 16, rng["log_rate"]));
    step_bias_ = std::make_unique<Param>(step_biases(count, rng["step_bias"]));
    name_parts({{"log_rate", *log_rate_}, {"step_bias", *step_bias_}});
  }

  // [B, T, H] or [B, T, H, K], or undefined.
  Var log_decay(const Var& x_BTD) const {
    constexpr double kLowest = -5;  // of the safe gate
    if (o_.decay == DeltaDecay::none) return {};
    Var rate = exp(*log_rate_);
    if (o_.decay == DeltaDecay::head) return floored(-(rate * softplus(wide_linear(x_BTD, *decay_) + *step_bias_)));
    Var step = split_heads(wide_linear((*decay_down_)(x_BTD), *decay_) + *step_bias_, o_.heads);
    rate = reshape(rate, {o_.heads, 1});
    return o_.has_safe_gate ? sigmoid(rate * step) * kLowest : floored(-(rate * softplus(step)));
  }

  DeltaOptions o_;
  int64_t dim_;
  Linear q_, k_, v_, strength_;
  Norm head_norm_;
  Linear out_;
  std::unique_ptr<ShortConv> q_conv_, k_conv_, v_conv_;
  std::unique_ptr<Linear> decay_down_, decay_, gate_down_, gate_;
  std::unique_ptr<Param> log_rate_, step_bias_;
};

}  // namespace

std::unique_ptr<Mixer> DeltaOptions::operator()(const MixerArgs& args, Rng rng) const {
  return std::make_unique<Delta>(completed(*this, args.dim), args, rng);
}

}  // namespace weft
