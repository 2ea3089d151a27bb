// Scores that read the distance of query and key through learned parameters:
//   RCMHA (2308.03429, with the equations of its named parts: Primer's depthwise convolution, Transformer-XL's relative positions):
//     q, k, v <- causal depthwise conv;  s_ij = ((q_i + u_h) . k_j + (q_i + t_h) . (R_(i-j) W)_h) / sqrt(K),  R sinusoids
//   T5's bias (1910.10683): s_ij = q_i . k_j / sqrt(K) + b_h[bucket(i - j)]
// B batch, I queries of a tile, S keys, H query heads, G key/value heads, K head width, D model width.
#include <cmath>

#include "src/nn/mixers/pair_scores/pair_scores.h"
#include "weft/core/error.h"
#include "weft/nn/mixers/pair_scores.h"
#include "weft/nn/mixers/projected.h"

namespace weft {

namespace {

// Sinusoids of distances 0 .. count - 1: [count, dim], first the sines, then the cosines.
Tensor sinusoids(int64_t count, int64_t dim) {
  Tensor table = Tensor::zeros({count, dim}, kF32, Device::cpu());
  const int64_t half = dim / 2;
  for (int64_t d = 0; d < count; ++d)
    for (int64_t m = 0; m < half; ++m) {
      double angle = static_cast<double>(d) * std::pow(10000.0, -static_cast<double>(m) / static_cast<double>(half));
      table.mutable_data<float>()[d * dim + m] = static_cast<float>(std::sin(angle));
      table.mutable_data<float>()[d * dim + half + m] = static_cast<float>(std::cos(angle));
    }
  return to(table, default_device()).value();
}

// 1 for this token, 0 before.
Tensor current_only(int64_t channels, int64_t kernel) {
  Tensor w = Tensor::zeros({channels, kernel}, kF32, Device::cpu());
  for (int64_t c = 0; c < channels; ++c) w.mutable_data<float>()[c * kernel + kernel - 1] = 1;
  return to(w, default_device()).value();
}

class Rcmha final : public ProjectedMixer {
 public:
  Rcmha(const RcmhaOptions& o, const MixerArgs& args, Rng rng)
      : ProjectedMixer("rcmha", {o.heads, o.kv_heads, o.head_dim}, args, rng),
        o_(o),
        q_conv_(current_only(s_.heads * s_.head_dim, kernel(o))),
        k_conv_(current_only(s_.kv_heads * s_.head_dim, kernel(o))),
        v_conv_(current_only(s_.kv_heads * s_.head_dim, kernel(o))),
        content_bias_(Tensor::zeros({s_.heads, s_.head_dim})),
        position_bias_(Tensor::zeros({s_.heads, s_.head_dim})),
        position_(args.dim, s_.heads * s_.head_dim, rng["position"], {.std = args.std}) {
    name_parts({{"q_conv", q_conv_},
                {"k_conv", k_conv_},
                {"v_conv", v_conv_},
                {"content_bias", content_bias_},
                {"position_bias", position_bias_},
                {"position", position_}});
  }

  Var forward(const Var& x_BTD, Tokens& tokens) override {
    Scope scope(name());
    Var q = tokens.conv(queries(x_BTD), q_conv_), k = tokens.conv(keys(x_BTD), k_conv_);
    Var v = tokens.conv(values(x_BTD), v_conv_);
    const Var of_queries[] = {q + content_bias(q), q + position_bias(q)}, of_keys[] = {k};
    auto score = [this](const PairTile& tile) {
      const Var& q = tile.queries[0];
      const int64_t H = s_.heads, S = tile.keys[0].size(1), B = q.size(0), I = q.size(1);
      const DType wide = pair_dtype(q);
      Var table_SHK = reshape(position_(cast(Var(sinusoids(S, args_.dim)), q.dtype())), {S, H, s_.head_dim});
      Var by_distance = matmul(permute(cast(tile.queries[1], wide), {0, 2, 1, 3}),
                               permute(cast(table_SHK, wide), {1, 0, 2}), {.transpose_b = true});  // [B, H, I, S]
      Tensor index = cast(Var(tile.distance_BIS), kI32).value().unsqueeze(1).expand({B, H, I, S});
      return (pair_products(q, tile.keys[0]) + gather(by_distance, 3, index)) *
             (1 / std::sqrt(static_cast<double>(s_.head_dim)));
    };
    return written(attend_pairs(tokens, of_queries, of_keys, v, s_.heads, score, o_.window), tokens);
  }

  double flops_per_token(double keys) const override {
    return 18.0 * static_cast<double>(s_.heads * s_.head_dim) * keys;
  }
  double keys_per_query(int64_t context) const override { return causal_keys(context, o_.window); }

 private:
  static int64_t kernel(const RcmhaOptions& o) {
    WEFT_CHECK(o.kernel >= 1, str("rcmha: kernel ", o.kernel), "use 1 (no convolution) or more");
    return o.kernel;
  }
  Var content_bias(const Var& q) const { return cast(Var(content_bias_), q.dtype()); }
  Var position_bias(const Var& q) const { return cast(Var(position_bias_), q.dtype()); }
  RcmhaOptions o_;
  Param q_conv_, k_conv_, v_conv_;      // [H K, kernel], [G K, kernel]
  Param content_bias_, position_bias_;  // u, t: [H, K]
  Linear position_;
};

class RelativeBias final : public ProjectedMixer {
 public:
  RelativeBias(const RelativeBiasOptions& o, const MixerArgs& args, Rng rng)
      : ProjectedMixer("relative_bias", {o.heads, o.kv_heads, o.head_dim}, args, rng),
        o_(o),
        bias_(Tensor::zeros({o.buckets, s_.heads})) {
    WEFT_CHECK(o.buckets >= 2 && o.buckets % 2 == 0 && o.max_distance > o.buckets / 2,
               str("relative_bias: ", o.buckets, " buckets to a distance of ", o.max_distance),
               "use an even number of buckets, and more distances than half of them");
    name_parts({{"bias", bias_}});
  }

  Var forward(const Var& x_BTD, Tokens& tokens) override {
    Scope scope(name());
    auto score = [this](const PairTile& tile) {
      const int64_t H = s_.heads, S = tile.keys[0].size(1), B = tile.keys[0].size(0), I = tile.queries[0].size(1);
      Var s = pair_products(tile.queries[0], tile.keys[0]) * (1 / std::sqrt(static_cast<double>(s_.head_dim)));
      Var by_distance_SH = embedding(cast(Var(bias_), s.dtype()), bucket_of_distance(S));
      Var table = expand(reshape(transpose(by_distance_SH, 0, 1), {1, H, 1, S}), {B, H, I, S});
      Tensor index = cast(Var(tile.distance_BIS), kI32).value().unsqueeze(1).expand({B, H, I, S});
      return s + gather(table, 3, index);
    };
    const Var q[] = {queries(x_BTD)}, k[] = {keys(x_BTD)};
    return written(attend_pairs(tokens, q, k, values(x_BTD), s_.heads, score, o_.window), tokens);
  }

  double flops_per_token(double keys) const override {
    return 12.0 * static_cast<double>(s_.heads * s_.head_dim) * keys;
  }
  double keys_per_query(int64_t context) const override { return causal_keys(context, o_.window); }

 private:
  Tensor bucket_of_distance(int64_t count) const {
    Tensor buckets = Tensor::empty({count}, kI32, Device::cpu());
    const int64_t exact = o_.buckets / 2;
    const double range = std::log(static_cast<double>(o_.max_distance) / static_cast<double>(exact));
    for (int64_t d = 0; d < count; ++d) {
      int64_t bucket = d;
      if (d >= exact)
        bucket = exact + static_cast<int64_t>(std::log(static_cast<double>(d) / static_cast<double>(exact)) / range *
                                              static_cast<double>(o_.buckets - exact));
      buckets.mutable_data<int32_t>()[d] = static_cast<int32_t>(std::min(bucket, o_.buckets - 1));
    }
    return weft::to(buckets, default_device()).value();
  }

  RelativeBiasOptions o_;
  Param bias_;  // [buckets, H]
};

}  // namespace

std::unique_ptr<Mixer> RcmhaOptions::operator()(const MixerArgs& args, Rng rng) const {
  return std::make_unique<Rcmha>(*this, args, rng);
}
std::unique_ptr<Mixer> RelativeBiasOptions::operator()(const MixerArgs& args, Rng rng) const {
  return std::make_unique<RelativeBias>(*this, args, rng);
}

}  // namespace weft
