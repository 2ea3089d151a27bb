// Multi-Token Attention (2504.00927), materialised. With A the scores, 0 where a query does not see a key, and K the kernels:
//   C_h[i, j] = sum_ab K_h[a, b] A_h[i - (Q - 1) + a, j + b - (P - 1)/2];  C_h <- sum_h' M_hh' C_h' (if mixes_scores);  W = softmax(C)
//   W <- the same convolution of W (if has_weight_conv);  W_h <- sum_h' W_h' M'_h'h within groups of heads
//   o = RMSNorm(W v), times sigmoid(o . u + b)
// B batch, T tokens, R rows of queries, S keys, H heads, K head width, Q and P widths of the kernels.
#include <algorithm>
#include <cmath>

#include "src/nn/mixers/pair_scores/pair_scores.h"
#include "weft/core/error.h"
#include "weft/nn/mixers/pair_scores.h"
#include "weft/nn/mixers/projected.h"

namespace weft {

namespace {

MultiTokenOptions checked(MultiTokenOptions o) {
  if (o.group == 0) o.group = o.heads;
  WEFT_CHECK(o.group >= 1 && o.heads % o.group == 0, str("multi_token: groups of ", o.group, " of ", o.heads, " heads"),
             "group must divide heads");
  WEFT_CHECK(o.query_kernel >= 1 && o.key_kernel >= 1 && o.key_kernel % 2 == 1,
             str("multi_token: kernels of ", o.query_kernel, " queries and ", o.key_kernel, " keys"),
             "query_kernel is 1 or more, key_kernel an odd number");
  return o;
}

// 1 at this query and this key.
Tensor identity_kernel(int64_t heads, int64_t queries, int64_t keys) {
  Tensor w = Tensor::zeros({heads, queries, keys}, kF32, Device::cpu());
  for (int64_t h = 0; h < heads; ++h) w.mutable_data<float>()[(h * queries + queries - 1) * keys + (keys - 1) / 2] = 1;
  return to(w, default_device()).value();
}

Tensor identities(int64_t count, int64_t n) {
  Tensor eye = Tensor::zeros({count, n, n}, kF32, Device::cpu());
  for (int64_t i = 0; i < count * n; ++i) eye.mutable_data<float>()[i * n + i % n] = 1;
  return to(eye, default_device()).value();
}

class MultiToken final : public ProjectedMixer {
 public:
  MultiToken(const MultiTokenOptions& options, const MixerArgs& args, Rng rng)
      : ProjectedMixer("multi_token", {options.heads, options.heads, options.head_dim}, args, rng),
        o_(checked(options)),
        kernel_(identity_kernel(o_.heads, o_.query_kernel, o_.key_kernel)),
        norm_(s_.head_dim, {NormKind::rms, args.norm_eps}) {
    name_parts({{"kernel", kernel_}, {"norm", norm_}});
    if (o_.has_weight_conv) {
      weight_kernel_ = std::make_unique<Param>(identity_kernel(o_.heads, o_.query_kernel, o_.key_kernel));
      name_part({"weight_kernel", *weight_kernel_});
    }
    if (o_.mixes_scores) {
      score_mix_ = std::make_unique<Param>(identities(1, o_.heads).reshape({o_.heads, o_.heads}));
      name_part({"score_mix", *score_mix_});
    }
    if (o_.group > 1) {
      weight_mix_ = std::make_unique<Param>(identities(o_.heads / o_.group, o_.group));
      name_part({"weight_mix", *weight_mix_});
    }
    if (o_.has_gate) {
      double std = 1 / std::sqrt(static_cast<double>(args.dim));
      gate_ = std::make_unique<Linear>(s_.head_dim, 1, rng["gate"], LinearOptions{true, std});
      name_part({"gate", *gate_});
    }
  }

  Var forward(const Var& x_BTD, Tokens& tokens) override {
    Scope scope(name());
    tokens.check_in_order("multi_token");  // its convolutions run over neighbouring queries and keys
    const Var mine[] = {rotated(queries(x_BTD), args_, tokens), rotated(keys(x_BTD), args_, tokens), values(x_BTD)};
    const int64_t back = (o_.has_weight_conv ? 2 : 1) * (o_.query_kernel - 1);  // earlier rows that these read
    const int64_t reach = o_.window > 0 ? std::max<int64_t>(o_.window, o_.query_kernel) + back : 0;
    std::vector<Var> all = tokens.gather(mine, reach);
    const int64_t B = x_BTD.size(0), T = x_BTD.size(1), S = all[0].size(1);
    const int64_t R = std::min(S, T + back), H = o_.heads;
    // What backward keeps: padded scores and weights for each convolution, masks and softmax.
    check_materialised("multi_token", x_BTD, o_.has_weight_conv ? 8 : 6,
                       static_cast<double>(B * H * R) * static_cast<double>(S));
    Tensor seen = tokens.seen(T - R, T, S, o_.window, reach).unsqueeze(1);  // [B, 1, R, S]
    Var scores = pair_products(slice(all[0], 1, S - R, S), all[1]) * (1 / std::sqrt(static_cast<double>(s_.head_dim)));
    Tensor mask = seen.expand(scores.shape());
    Var nothing = Tensor::full({}, 0, scores.dtype(), scores.device());
    scores = convolved(where(mask, scores, nothing), kernel_, tokens, reach);
    if (score_mix_) scores = reshape(matmul(wide(*score_mix_, scores), reshape(scores, {B, H, R * S})), {B, H, R, S});
    Var weights = masked_softmax(scores, seen);
    if (weight_kernel_) weights = where(mask, convolved(weights, *weight_kernel_, tokens, reach), nothing);
    weights = slice(weights, 2, R - T, R);
    if (weight_mix_) {
      Var grouped = reshape(weights, {B, H / o_.group, o_.group, T * S});
      weights = reshape(matmul(wide(*weight_mix_, scores), grouped, {.transpose_a = true}), {B, H, T, S});
    }
    PairObserver observer(tokens);
    observer.add(slice(scores, 2, R - T, R), seen.slice(2, R - T, R), weights);
    observer.finish(all[2], !o_.has_weight_conv && o_.group <= 1);
    Var y_BTHK = norm_(mix_values(weights, all[2]));
    return written(gate_ ? y_BTHK * sigmoid((*gate_)(y_BTHK)) : y_BTHK, tokens);
  }

  double flops_per_token(double keys) const override {
    int64_t taps = o_.query_kernel * o_.key_kernel * (o_.has_weight_conv ? 2 : 1);
    int64_t mixing = o_.group + (o_.mixes_scores ? o_.heads : 0);
    return 6.0 * static_cast<double>(o_.heads * (2 * s_.head_dim + taps + mixing)) * keys;
  }
  double keys_per_query(int64_t context) const override { return causal_keys(context, o_.window); }

 private:
  static Var wide(const Param& p, const Var& like) { return cast(Var(p), like.dtype()); }

  // Whether the token `back` before is of the same document, for the last R of S tokens: [B, R, 1].
  static Tensor continues(int64_t back, int64_t R, int64_t S, const Tokens& tokens, int64_t reach) {
    const int64_t B = tokens.batch(), T = tokens.num_tokens();
    Tensor earlier = Tensor::empty({1, R, 1}, kI32, Device::cpu());
    for (int64_t r = 0; r < R; ++r)
      earlier.mutable_data<int32_t>()[r] = static_cast<int32_t>(std::max<int64_t>(S - R + r - back, 0));
    Var seen = cast(Var(tokens.seen(T - R, T, S, reach > 0 ? back + 1 : 0, reach)), kF32);
    Tensor index = weft::to(earlier, seen.device()).value().expand({B, R, 1});
    return cast(gather(seen, 2, index), kBool).value();
  }

  // a [B, H, R, S]: neighbours outside it are 0, rows of other documents too. Keys are gathered for a window of `reach`.
  Var convolved(const Var& a, const Param& kernel, Tokens& tokens, int64_t reach) const {
    const int64_t B = a.size(0), H = a.size(1), R = a.size(2), S = a.size(3);
    const int64_t Q = o_.query_kernel, P = o_.key_kernel, side = (P - 1) / 2;
    auto zeros = [&](int64_t rows, int64_t columns) {
      return Var(Tensor::zeros({B, H, rows, columns}, a.dtype(), a.device()));
    };
    const Var wider[] = {zeros(R, side), a, zeros(R, side)};
    const Var higher[] = {zeros(Q - 1, S + P - 1), concatenate(wider, 3)};
    Var padded = concatenate(higher, 2), taps = cast(Var(kernel), a.dtype()), sum;
    for (int64_t back = 0; back < Q; ++back) {
      Var row;
      for (int64_t b = 0; b < P; ++b) {
        Var tap_H11 = unsqueeze(unsqueeze(select(select(taps, 1, Q - 1 - back), 1, b), -1), -1);
        Var term = slice(slice(padded, 2, Q - 1 - back, Q - 1 - back + R), 3, b, b + S) * tap_H11;
        row = row.defined() ? row + term : term;
      }
      if (tokens.documents().defined() && back > 0)  // a row before the document's first has no say
        row = row * unsqueeze(cast(Var(continues(back, R, S, tokens, reach)), a.dtype()), 1);
      sum = sum.defined() ? sum + row : row;
    }
    return sum;
  }

  MultiTokenOptions o_;
  Param kernel_;                                                   // [H, Q, P]
  std::unique_ptr<Param> weight_kernel_, score_mix_, weight_mix_;  // [H, Q, P], [H, H], [H / group, group, group]
  Norm norm_;
  std::unique_ptr<Linear> gate_;
};

}  // namespace

std::unique_ptr<Mixer> MultiTokenOptions::operator()(const MixerArgs& args, Rng rng) const {
  return std::make_unique<MultiToken>(*this, args, rng);
}

}  // namespace weft
