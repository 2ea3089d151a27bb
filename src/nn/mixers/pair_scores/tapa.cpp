// Token-aware phase (2509.12635), with a the first channels of each head and p the others:
//   s_ij = A cos(2 pi (i - j)^power phi),  A = a_i . a_j / sqrt(Ka),  phi = p_i . p_j / sqrt(Kp)
// B batch, I queries of a tile, S keys, H query heads, K head width.
#include <cmath>
#include <numbers>

#include "src/nn/mixers/pair_scores/pair_scores.h"
#include "weft/core/error.h"
#include "weft/nn/mixers/pair_scores.h"
#include "weft/nn/mixers/projected.h"

namespace weft {

namespace {

class Tapa final : public ProjectedMixer {
 public:
  Tapa(const TapaOptions& o, const MixerArgs& args, Rng rng)
      : ProjectedMixer("tapa", {o.heads, o.kv_heads, o.head_dim}, args, rng),
        o_(o),
        amplitude_(static_cast<int64_t>(std::lround(o.amplitude_share * static_cast<double>(s_.head_dim)))) {
    WEFT_CHECK(amplitude_ >= 1 && amplitude_ < s_.head_dim,
               str("tapa: amplitude_share ", o.amplitude_share, " of ", s_.head_dim, " channels"),
               "both the amplitude and the phase need at least one channel");
    WEFT_CHECK(o.power >= 0 && o.power <= 1, str("tapa: power ", o.power), "use a number from 0 to 1");
  }

  Var forward(const Var& x_BTD, Tokens& tokens) override {
    Scope scope(name());
    auto score = [this](const PairTile& tile) {
      const Var &q = tile.queries[0], &k = tile.keys[0];
      Var distance = unsqueeze(cast(Var(tile.distance_BIS), pair_dtype(q)), 1);
      Var turns = masked_power(distance) * (2 * std::numbers::pi);
      return products(q, k, 0, amplitude_) * cos(products(q, k, amplitude_, s_.head_dim) * turns);
    };
    const DType wide = pair_dtype(x_BTD);  // phases need more than bf16's eight bits
    const Var q[] = {queries(x_BTD, wide)}, k[] = {keys(x_BTD, wide)};
    return written(attend_pairs(tokens, q, k, values(x_BTD), s_.heads, score, o_.window), tokens);
  }

  double flops_per_token(double keys) const override {
    return 12.0 * static_cast<double>(s_.heads * s_.head_dim) * keys;
  }
  double keys_per_query(int64_t context) const override { return causal_keys(context, o_.window); }

 private:
  Var products(const Var& q, const Var& k, int64_t begin, int64_t end) const {
    return pair_products(slice(q, -1, begin, end), slice(k, -1, begin, end)) *
           (1 / std::sqrt(static_cast<double>(end - begin)));
  }
  // distance^power, 0 for 0
  Var masked_power(const Var& distance) const {
    Var tiny = Tensor::full({}, 1e-30, distance.dtype(), distance.device());
    return exp(log(maximum(distance, tiny)) * o_.power) *
           minimum(distance, Tensor::full({}, 1, distance.dtype(), distance.device()));
  }

  TapaOptions o_;
  int64_t amplitude_;
};

}  // namespace

std::unique_ptr<Mixer> TapaOptions::operator()(const MixerArgs& args, Rng rng) const {
  return std::make_unique<Tapa>(*this, args, rng);
}

}  // namespace weft
