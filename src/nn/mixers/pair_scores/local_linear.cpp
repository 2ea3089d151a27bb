// Local Linear Attention (2510.01450). For query t over the keys j that it sees, of RMS-normed q and k, with s = q . k / sqrt(K):
//   w_j = exp(s_j),  z_j = k_j - q,  mu = sum w_j z_j,  Sigma = sum w_j z_j z_j^T + ridge I,  rho = Sigma^-1 mu
//   a_j = w_j (1 - z_j . rho),  o = sum a_j v_j / sum a_j
// which is the value at q of the ridge regression of v on k around q. As the ridge grows this becomes softmax attention. Sigma is never made:
//   Sigma p = sum w_j z_j (z_j . p) + ridge p
// is all that conjugate gradients need, and rho has the gradient of the solution, not of its steps.
// A row of norm sqrt(K) gives |s| <= sqrt(K), so that exp needs no maximum. Weights and ridge are divided by sum w_j, which leaves rho and o as
// they are: the squares that conjugate gradients take of them stay in range.
// B batch, I queries of a tile, S keys, H query heads, G key/value heads, R = H / G I rows of queries per key head, K head width.
#include <cmath>

#include "src/nn/mixers/pair_scores/pair_scores.h"
#include "src/nn/mixers/recurrent/parts.h"
#include "weft/autograd/solve.h"
#include "weft/core/error.h"
#include "weft/nn/mixers/pair_scores.h"
#include "weft/nn/mixers/projected.h"

namespace weft {

namespace {

// A weight may be exp(sqrt(K)) times the ridge. Of a ridge that is less than 1e-15 of the weights f64 keeps nothing, and what conjugate
// gradients find then is rounding.
constexpr int64_t kWidest = 1024, kWideInF32 = 128;
constexpr double kLeast = 1e-6;  // sum a_j over sum w_j, which is above 0 but for rounding

// The sums over the keys that every query of a tile sees, as functions of its weights.
struct Fit {
  Var weights_BGRS, q_BGRK, k_BGSK, ridge_BGR1;

  // z_j . p for every key: [B, G, R, S].
  Var along(const Var& p_BGRK) const {
    return matmul(p_BGRK, k_BGSK, {.transpose_b = true}) - sum(p_BGRK * q_BGRK, -1, true);
  }
  // sum c_j z_j.
  Var weighted(const Var& c_BGRS) const { return matmul(c_BGRS, k_BGSK) - sum(c_BGRS, -1, true) * q_BGRK; }
  Var sigma(const Var& p_BGRK) const { return weighted(weights_BGRS * along(p_BGRK)) + ridge_BGR1 * p_BGRK; }
  Fit detached() const { return {weights_BGRS.detach(), q_BGRK.detach(), k_BGSK.detach(), ridge_BGR1.detach()}; }
};

Var slope(const Fit& fit) {
  const Fit fixed = fit.detached();
  auto product = [fixed](const Var& p) { return fixed.sigma(p); };
  Tensor rho = conjugate_gradients(fixed.weighted(fixed.weights_BGRS), product);
  return implicit_solution(rho, fit.weighted(fit.weights_BGRS) - fit.sigma(rho), product);
}

class LocalLinear final : public ProjectedMixer {
 public:
  LocalLinear(const LocalLinearOptions& o, const MixerArgs& args, Rng rng)
      : ProjectedMixer("local_linear", {o.heads, o.kv_heads, o.head_dim}, args, rng),
        ridge_(Tensor::full({s_.heads}, std::log(std::expm1(1.0)))) {  // softplus of it is 1
    WEFT_CHECK(s_.head_dim <= kWidest,
               str("local_linear: head_dim ", s_.head_dim, ", whose weights reach exp(sqrt(head_dim)) times the ridge"),
               str("use at most ", kWidest));
    name_part({"ridge", ridge_});
  }

  Var forward(const Var& x_BTD, Tokens& tokens) override {
    Scope scope(name());
    // In wide heads one weight may be a million times the ridge, of which nothing is left behind z . p of f32.
    const DType made = pair_dtype(x_BTD), wide = s_.head_dim > kWideInF32 ? kF64 : made;
    auto placed = [&](const Var& x) {
      return rotated(recurrent::rms_normed(cast(x, wide), args_.norm_eps), args_, tokens);
    };
    const Var q[] = {placed(queries(x_BTD, made))}, k[] = {placed(keys(x_BTD, made))};
    auto mix = [this](const PairTile& tile, const Tensor& seen, const Var& v, PairObserver* observer) {
      return estimate(tile, seen, v, observer);
    };
    return written(mix_pairs(tokens, q, k, values(x_BTD), s_.heads, mix, 0, false), tokens);
  }

  // With K steps for every solution, of which there are one forward and two backward.
  double flops_per_token(double keys) const override {
    return 12.0 * static_cast<double>(s_.heads * s_.head_dim * (3 + s_.head_dim)) * keys;
  }

 private:
  Var estimate(const PairTile& tile, const Tensor& seen_B1IS, const Var& v_BSGV, PairObserver* observer) const {
    const int64_t B = tile.queries[0].size(0), I = tile.queries[0].size(1), S = v_BSGV.size(1), G = s_.kv_heads;
    const int64_t H = s_.heads, K = s_.head_dim, R = H / G * I;
    Var scores_BHIS = pair_products(tile.queries[0], tile.keys[0]) * (1 / std::sqrt(static_cast<double>(K)));
    Var weights = where(seen_B1IS.expand(scores_BHIS.shape()), exp(scores_BHIS), 0.0);
    Var total_BHI1 = sum(weights, -1, true).detach();
    total_BHI1 = where(greater(total_BHI1, 0.0), total_BHI1, 1.0);  // 1 where a query sees no key
    weights = weights / total_BHI1;
    Var ridge = cast(softplus(ridge_), scores_BHIS.dtype());
    Var ridge_BHI1 = expand(reshape(ridge, {1, H, 1, 1}), {B, H, I, 1}) / total_BHI1;
    const Fit fit{.weights_BGRS = reshape(weights, {B, G, R, S}),
                  .q_BGRK = reshape(permute(tile.queries[0], {0, 2, 1, 3}), {B, G, R, K}),
                  .k_BGSK = permute(tile.keys[0], {0, 2, 1, 3}),
                  .ridge_BGR1 = reshape(ridge_BHI1, {B, G, R, 1})};
    Var shares = fit.weights_BGRS * (1.0 - fit.along(slope(fit)));
    shares = reshape(shares / maximum(sum(shares, -1, true), kLeast), {B, H, I, S});
    if (observer) observer->add(scores_BHIS, seen_B1IS, shares);
    return cast(mix_values(shares, cast(v_BSGV, shares.dtype())), v_BSGV.dtype());
  }

  Param ridge_;  // [H]
};

}  // namespace

std::unique_ptr<Mixer> LocalLinearOptions::operator()(const MixerArgs& args, Rng rng) const {
  return std::make_unique<LocalLinear>(*this, args, rng);
}

}  // namespace weft
