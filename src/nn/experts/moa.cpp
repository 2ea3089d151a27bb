// MoA (2210.05144):  y_t = sum over chosen e of w_te softmax(rot(x_t W_Q^e) k^T / sqrt(K)) v W_O^e,  w = p / sum of the chosen p, the sum
// without gradient; k = rot(x W_K), v = x W_V, one head. B batch, T tokens, N = B T, D model width, E experts, A active, K head width.
#include <cmath>

#include "src/nn/experts/experts.h"
#include "weft/core/error.h"
#include "weft/nn/experts/router.h"
#include "weft/nn/mixers/experts.h"
#include "weft/nn/mixers/projected.h"

namespace weft {

namespace {

MoaOptions checked(MoaOptions o, const MixerArgs& args) {
  WEFT_CHECK(o.experts >= 1 && o.active >= 1 && o.active <= o.experts,
             str("moa: ", o.active, " active of ", o.experts, " experts"), "use between 1 and all of them");
  o.head_dim = completed("moa", {o.active, o.active, o.head_dim}, args).head_dim;
  return o;
}

double xavier(int64_t in, int64_t out) { return std::sqrt(6.0 / static_cast<double>(in + out)); }

class Moa final : public Mixer {
 public:
  Moa(const MoaOptions& options, const MixerArgs& args, Rng rng)
      : o_(checked(options, args)),
        args_(args),
        router_({.experts = o_.experts,
                 .active = o_.active,
                 .weights = o_.is_detached ? RouterWeights::renorm_detached : RouterWeights::renorm,
                 .balance = RouterBalance::normalised,
                 .balance_loss = o_.balance_loss,
                 .z_loss = o_.z_loss,
                 .has_noise = o_.has_noise},
                args.dim, args.layers, args.std, rng["router"]),
        k_(uniform_init({o_.head_dim, args.dim}, rng["k"], xavier(args.dim, o_.head_dim) * std::sqrt(0.5))),
        v_(uniform_init({o_.head_dim, args.dim}, rng["v"], xavier(args.dim, o_.head_dim) * std::sqrt(0.5))),
        q_(uniform_init({o_.experts, o_.head_dim, args.dim}, rng["q"], xavier(args.dim, o_.head_dim))),
        out_(uniform_init({o_.experts, args.dim, o_.head_dim}, rng["out"], xavier(args.dim, o_.head_dim))) {
    name_parts({{"router", router_}, {"k", k_}, {"v", v_}, {"q", q_}, {"out", out_}});
  }

  Var forward(const Var& x_BTD, Tokens& tokens) override {
    Scope scope(name());
    const int64_t B = x_BTD.size(0), T = x_BTD.size(1), D = args_.dim, K = o_.head_dim, A = o_.active;
    Routing r = router_(x_BTD, tokens);
    Tensor chosen_NA = r.chosen_BTK.reshape({B * T, A});
    auto with = [&](const Param& weights) {
      return [&](int64_t e, const Var& rows) { return linear(rows, cast(select(weights, 0, e), rows.dtype())); };
    };
    Var q_NAK = run_experts(reshape(x_BTD, {B * T, D}), chosen_NA, o_.experts, o_.is_dense, with(q_));
    Var q = rotated(reshape(q_NAK, {B, T, A, K}), args_, tokens);
    Var k = rotated(split_heads(linear(x_BTD, k_), 1), args_, tokens), v = split_heads(linear(x_BTD, v_), 1);
    Var y_NAK = reshape(tokens.attend(q, k, v)[0], {B * T, A, K});
    Var y_NAD = run_experts(y_NAK, chosen_NA, o_.experts, o_.is_dense, with(out_));
    Var weights_NA1 = reshape(cast(r.weights_BTK, x_BTD.dtype()), {B * T, A, 1});
    return reshape(sum(y_NAD * weights_NA1, 1), {B, T, D});
  }

  double flops_per_token(double keys) const override {
    const int64_t runs = o_.is_dense ? o_.experts : o_.active;
    return 12.0 * static_cast<double>(o_.active * o_.head_dim) * keys +
           12.0 * static_cast<double>(runs * o_.head_dim * args_.dim);
  }
  int64_t num_idle_params() const override { return (o_.experts - o_.active) * 2 * o_.head_dim * args_.dim; }

 private:
  MoaOptions o_;
  MixerArgs args_;
  Router router_;
  Param k_, v_;    // [K, D]
  Param q_, out_;  // [E, K, D], [E, D, K]
};

}  // namespace

std::unique_ptr<Mixer> MoaOptions::operator()(const MixerArgs& args, Rng rng) const {
  return std::make_unique<Moa>(*this, args, rng);
}

}  // namespace weft
