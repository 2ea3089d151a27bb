// Attention and recurrent heads beside each other (Hymba, 2411.13676). Of x, with a window w and meta tokens M:
//   a = attend(rotated q, rotated k, v; last w tokens, and M)
//   u, w, r = silu(conv(x W)) each,  d = softplus(x W_d + b),  g = -exp(A) d
//   S_t = exp(g_t) S_{t-1} + w_t^T (d_t u_t),  m_t = (r_t S_t + D u_t) silu(z_t),  S before the first token learned with M
//   y = (RMSNorm(a) + RMSNorm(m)) / 2 W_out
// B batch, T tokens, D model width, H heads, G key/value heads, K head width, E = H K, N state width, M meta tokens.
#include <array>
#include <cmath>

#include "src/nn/mixers/recurrent/parts.h"
#include "weft/core/error.h"
#include "weft/nn/mixers/hybrids.h"
#include "weft/nn/mixers/projected.h"

namespace weft {

namespace {

HymbaOptions completed(HymbaOptions o, const MixerArgs& args) {
  const HeadSizes sizes = completed("hymba", {o.heads, o.kv_heads, o.head_dim}, args);
  o.kv_heads = sizes.kv_heads;
  o.head_dim = sizes.head_dim;
  if (o.state == 0) o.state = o.head_dim;
  WEFT_CHECK(o.window >= 0 && o.state > 0 && o.kernel > 0 && o.meta >= 0 && o.sharing > 0,
             str("hymba: window ", o.window, ", state ", o.state, ", kernel ", o.kernel, ", meta ", o.meta,
                 ", sharing ", o.sharing),
             "window and meta are 0 or more, the others 1 or more");
  return o;
}

using namespace recurrent;

// Among layers in a row that have this mixer. A model counts them: layers with another window, between these, have keys of their own.
int64_t place_of(const MixerArgs& args) {
  const auto found = args.numbers.find("place_in_run");
  return found == args.numbers.end() ? args.layer : static_cast<int64_t>(found->second);
}

class Hymba final : public Mixer {
 public:
  Hymba(const HymbaOptions& options, const MixerArgs& args, Rng rng)
      : o_(completed(options, args)),
        args_(args),
        place_(place_of(args) % o_.sharing),
        width_(o_.heads * o_.head_dim),
        q_(args.dim, width_, rng["q"], {.std = args.std}),
        u_(args.dim, width_, rng["u"], {.std = args.std}),
        write_(args.dim, o_.state, rng["write"], {.std = args.std}),
        read_(args.dim, o_.state, rng["read"], {.std = args.std}),
        z_(args.dim, width_, rng["z"], {.std = args.std}),
        step_(args.dim, o_.heads, rng["step"], {.std = args.std}),
        out_(width_, args.dim, rng["out"], {.std = args.out_std}),
        u_conv_(width_, o_.kernel, rng["u_conv"]),
        write_conv_(o_.state, o_.kernel, rng["write_conv"]),
        read_conv_(o_.state, o_.kernel, rng["read_conv"]),
        log_rate_(log_rates(o_.heads, 1, 16, rng["log_rate"])),
        step_bias_(step_biases(o_.heads, rng["step_bias"])),
        skip_(Tensor::full({o_.heads}, 1)),
        norm_a_(width_, {.eps = args.norm_eps}),
        norm_m_(width_, {.eps = args.norm_eps}) {
    name_parts({{"q", q_}, {"u", u_}, {"write", write_}, {"read", read_}, {"z", z_}, {"step", step_}, {"out", out_}});
    name_parts({{"u_conv", u_conv_}, {"write_conv", write_conv_}, {"read_conv", read_conv_}});
    name_parts({{"log_rate", log_rate_}, {"step_bias", step_bias_}, {"skip", skip_}});
    name_parts({{"norm_attention", norm_a_}, {"norm_recurrence", norm_m_}});
    const int64_t keys = o_.kv_heads * o_.head_dim;
    if (place_ == 0) {
      k_ = std::make_unique<Linear>(args.dim, keys, rng["k"], LinearOptions{.std = args.std});
      v_ = std::make_unique<Linear>(args.dim, keys, rng["v"], LinearOptions{.std = args.std});
      name_parts({{"k", *k_}, {"v", *v_}});
    }
    if (o_.meta == 0) return;
    meta_k_ = std::make_unique<Param>(normal_init({o_.meta, keys}, rng["meta k"], args.std));
    meta_v_ = std::make_unique<Param>(normal_init({o_.meta, keys}, rng["meta v"], args.std));
    meta_state_ = std::make_unique<Param>(normal_init({o_.state, width_}, rng["meta state"], args.std));
    name_parts({{"meta_k", *meta_k_}, {"meta_v", *meta_v_}, {"meta_state", *meta_state_}});
  }

  Var forward(const Var& x_BTD, Tokens& tokens) override {
    Scope scope(name());
    Var a_BTE = norm_a_(merge_heads(attention(x_BTD, tokens)));
    Var m_BTE = norm_m_(merge_heads(recurrence(x_BTD, tokens)) * silu(z_(x_BTD)));
    return out_(merge_heads(tokens.heads(split_heads((a_BTE + m_BTE) * 0.5, o_.heads))));
  }

  double keys_per_query(int64_t context) const override {
    return causal_keys(context, o_.window) + static_cast<double>(o_.meta);
  }
  double flops_per_token(double keys) const override {
    return 12.0 * static_cast<double>(width_) * keys + recurrence_flops(o_.heads, o_.state, o_.head_dim);
  }

 private:
  Var attention(const Var& x_BTD, Tokens& tokens) {
    Var q_BTHK = rotated(split_heads(q_(x_BTD), o_.heads), args_, tokens);
    const ops::AttentionOptions core{.mask = {.window = o_.window}};
    // Attention on the meta tokens: to the tokens it is a sink, which is joined afterwards by the share of weight that it gets.
    Var scores_BHTM, sink_BTH;
    if (meta_k_) {
      scores_BHTM = matmul(transpose(q_BTHK, 1, 2), per_head(*meta_k_, q_BTHK.dtype()),
                           {.transpose_b = true, .out = wide(x_BTD)}) *
                    (1 / std::sqrt(static_cast<double>(o_.head_dim)));
      sink_BTH = transpose(logsumexp(scores_BHTM), 1, 2);
    }
    std::array<Var, 2> attended;
    if (o_.sharing > 1 && tokens.is_decoding()) {
      attended = tokens.attend_part(tokens.queries(q_BTHK), cached_keys(x_BTD, tokens), core);
    } else {
      const auto [k_BTGK, v_BTGK] = keys_and_values(x_BTD, tokens);
      attended = tokens.attend(q_BTHK, k_BTGK, v_BTGK, core, sink_BTH);
    }
    const auto& [y_BTHK, lse_BTH] = attended;
    if (!meta_k_) return y_BTHK;
    Var meta_BHTK = matmul(cast(softmax(scores_BHTM), q_BTHK.dtype()), per_head(*meta_v_, q_BTHK.dtype()));
    Var share = unsqueeze(cast(sigmoid(sink_BTH - lse_BTH), y_BTHK.dtype()), -1);
    return y_BTHK + (transpose(meta_BHTK, 1, 2) - y_BTHK) * share;
  }

  // [M, G K] -> [H, M, K]
  Var per_head(const Param& meta, DType dtype) const {
    Var x_GMK = transpose(split_heads(unsqueeze(cast(meta, dtype), 0), o_.kv_heads), 1, 2);
    const int64_t each = o_.heads / o_.kv_heads;
    Var x_GRMK =
        expand(reshape(x_GMK, {o_.kv_heads, 1, o_.meta, o_.head_dim}), {o_.kv_heads, each, o_.meta, o_.head_dim});
    return reshape(x_GRMK, {o_.heads, o_.meta, o_.head_dim});
  }

  // Each layer that shares asks other ranks for the keys of its window again: to keep them, a rank would gather those of all tokens.
  std::pair<Var, Var> keys_and_values(const Var& x_BTD, Tokens& tokens) {
    if (!k_) return {tokens.shared(named("k")), tokens.shared(named("v"))};
    auto [k_BTGK, v_BTGK] = own_keys_and_values(x_BTD, tokens);
    if (o_.sharing > 1) tokens.share(named("k"), k_BTGK), tokens.share(named("v"), v_BTGK);
    return {k_BTGK, v_BTGK};
  }

  // Of these tokens and of those before: the first layer has them in its cache, and the others read them there.
  KeySet cached_keys(const Var& x_BTD, Tokens& tokens) {
    auto shared = [&](std::string_view what) {
      return tokens.has_shared(named(what)) ? tokens.shared(named(what)) : Var();
    };
    auto number = [&](std::string_view what) { return shared(what).defined() ? shared(what).value() : Tensor(); };
    if (!k_)
      return {.k = shared("k"),
              .v = shared("v"),
              .bias = {},
              .tokens = {number("positions"), number("documents")},
              .window = o_.window};
    auto [k_BTGK, v_BTGK] = own_keys_and_values(x_BTD, tokens);
    const KeySet keys = tokens.keys(k_BTGK, v_BTGK, {.window = o_.window});
    tokens.share(named("k"), keys.k), tokens.share(named("v"), keys.v);
    tokens.share(named("positions"), keys.tokens.positions);
    if (keys.tokens.documents.defined()) tokens.share(named("documents"), keys.tokens.documents);
    return keys;
  }

  std::pair<Var, Var> own_keys_and_values(const Var& x_BTD, Tokens& tokens) {
    return {rotated(split_heads((*k_)(x_BTD), o_.kv_heads), args_, tokens), split_heads((*v_)(x_BTD), o_.kv_heads)};
  }

  // Of the layers that share.
  std::string named(std::string_view what) const { return str("hymba.", args_.layer - place_, ".", what); }

  Var recurrence(const Var& x_BTD, Tokens& tokens) {
    const DType dtype = x_BTD.dtype();
    Var u_BTHK = split_heads(u_conv_(u_(x_BTD), tokens), o_.heads);
    Var write_BTN = write_conv_(write_(x_BTD), tokens), read_BTN = read_conv_(read_(x_BTD), tokens);
    Var step_BTH = softplus(wide_linear(x_BTD, step_) + step_bias_);
    Var log_decay_BTH = floored(-(exp(log_rate_) * step_BTH));
    Var y_BTHK = tokens.recur({.q_BTGK = unsqueeze(read_BTN, 2),
                               .k_BTGK = unsqueeze(write_BTN, 2),
                               .v_BTHV = cast(cast(u_BTHK, wide(x_BTD)) * unsqueeze(step_BTH, 3), dtype),
                               .log_decay = log_decay_BTH});
    if (meta_state_) {
      // What is left of the first state: the decays of the document so far.
      Var left_BTH1 = unsqueeze(cast(exp(tokens.scan(cast(log_decay_BTH, kF64))), dtype), 3);
      y_BTHK = y_BTHK + split_heads(matmul(read_BTN, cast(*meta_state_, dtype)), o_.heads) * left_BTH1;
    }
    return y_BTHK + u_BTHK * cast(reshape(skip_, {o_.heads, 1}), dtype);
  }

  HymbaOptions o_;
  MixerArgs args_;
  int64_t place_;  // among the layers that use the same keys
  int64_t width_;
  Linear q_, u_, write_, read_, z_, step_, out_;
  std::unique_ptr<Linear> k_, v_;  // null where an earlier layer's are used
  ShortConv u_conv_, write_conv_, read_conv_;
  Param log_rate_, step_bias_, skip_;
  Norm norm_a_, norm_m_;
  std::unique_ptr<Param> meta_k_, meta_v_, meta_state_;
};

}  // namespace

std::unique_ptr<Mixer> HymbaOptions::operator()(const MixerArgs& args, Rng rng) const {
  return std::make_unique<Hymba>(*this, args, rng);
}

}  // namespace weft
