// Neural Attention (2502.17206). Per head, with weights shared by the heads:
//   s_ij = relu(relu([q_i A + a, k_j C + c] W1 + b1) W2 + b2) . w3
// Rotated q and k enter the network, so that its scores depend on positions within the document and not on distances alone.
// The first layer is a sum of a query's and a key's part, each computed once per token. w3's own bias cancels in softmax.
// B batch, I queries of a tile, S keys, H query heads, K head width, P and P/2 hidden widths.
#include <cmath>

#include "src/nn/mixers/pair_scores/pair_scores.h"
#include "weft/core/error.h"
#include "weft/nn/mixers/pair_scores.h"
#include "weft/nn/mixers/projected.h"

namespace weft {

namespace {

Tensor fan_in_init(const Shape& shape, Rng rng, int64_t fan_in) {
  return uniform_init(shape, rng, 1 / std::sqrt(static_cast<double>(fan_in)));
}

int64_t hidden_of(const NeuralOptions& o, int64_t head_dim) {
  int64_t hidden = o.hidden == 0 ? std::max<int64_t>(head_dim / 32, 2) : o.hidden;
  WEFT_CHECK(hidden >= 2 && hidden % 2 == 0, str("neural: hidden ", hidden), "use an even number, 2 or more");
  return hidden;
}

class Neural final : public ProjectedMixer {
 public:
  Neural(const NeuralOptions& o, const MixerArgs& args, Rng rng)
      : ProjectedMixer("neural", {o.heads, o.kv_heads, o.head_dim}, args, rng),
        window_(o.window),
        P_(hidden_of(o, s_.head_dim)),
        query_down_(fan_in_init({P_, s_.head_dim}, rng["query_down"], s_.head_dim)),
        query_down_bias_(fan_in_init({P_}, rng["query_down_bias"], s_.head_dim)),
        key_down_(fan_in_init({P_, s_.head_dim}, rng["key_down"], s_.head_dim)),
        key_down_bias_(fan_in_init({P_}, rng["key_down_bias"], s_.head_dim)),
        query_in_(fan_in_init({P_, P_}, rng["query_in"], 2 * P_)),
        key_in_(fan_in_init({P_, P_}, rng["key_in"], 2 * P_)),
        in_bias_(fan_in_init({P_}, rng["in_bias"], 2 * P_)),
        middle_(fan_in_init({P_ / 2, P_}, rng["middle"], P_)),
        middle_bias_(fan_in_init({P_ / 2}, rng["middle_bias"], P_)),
        last_(fan_in_init({1, P_ / 2}, rng["last"], P_ / 2)) {
    name_parts({{"query_down", query_down_},
                {"query_down_bias", query_down_bias_},
                {"key_down", key_down_},
                {"key_down_bias", key_down_bias_},
                {"query_in", query_in_},
                {"key_in", key_in_}});
    name_parts({{"in_bias", in_bias_}, {"middle", middle_}, {"middle_bias", middle_bias_}, {"last", last_}});
  }

  Var forward(const Var& x_BTD, Tokens& tokens) override {
    Scope scope(name());
    auto bias = [&](const Param& p) { return cast(Var(p), x_BTD.dtype()); };
    Var q = linear(rotated(queries(x_BTD), args_, tokens), query_down_, bias(query_down_bias_));
    Var k = linear(rotated(keys(x_BTD), args_, tokens), key_down_, bias(key_down_bias_));
    const Var of_queries[] = {linear(q, query_in_, bias(in_bias_))};  // [B, T, H, P]
    const Var of_keys[] = {per_query_head(linear(k, key_in_))};       // [B, T, H, P]
    auto score = [this](const PairTile& tile) {
      const DType wide = pair_dtype(tile.queries[0]);
      Var q_BHI1P = unsqueeze(permute(tile.queries[0], {0, 2, 1, 3}), 3);
      Var k_BH1SP = unsqueeze(permute(tile.keys[0], {0, 2, 1, 3}), 2);
      Var first_BHISP = relu(cast(q_BHI1P, wide) + cast(k_BH1SP, wide));
      auto at = [&](const Param& p) { return cast(Var(p), wide); };
      Var second = relu(linear(first_BHISP, at(middle_), at(middle_bias_)));
      return squeeze(linear(second, at(last_)), -1);
    };
    return written(attend_pairs(tokens, of_queries, of_keys, values(x_BTD), s_.heads, score, window_), tokens);
  }

  double flops_per_token(double keys) const override {
    auto per_pair = static_cast<double>(P_ * P_ / 2 + P_ / 2 + s_.head_dim);
    return 6.0 * static_cast<double>(s_.heads) * per_pair * keys;
  }
  double keys_per_query(int64_t context) const override { return causal_keys(context, window_); }

 private:
  int64_t window_, P_;
  Param query_down_, query_down_bias_, key_down_, key_down_bias_;  // [P, K], [P]
  Param query_in_, key_in_, in_bias_;                              // [P, P], [P]
  Param middle_, middle_bias_, last_;                              // [P/2, P], [P/2], [1, P/2]
};

}  // namespace

std::unique_ptr<Mixer> NeuralOptions::operator()(const MixerArgs& args, Rng rng) const {
  return std::make_unique<Neural>(*this, args, rng);
}

}  // namespace weft
