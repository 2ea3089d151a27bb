// UMoE, attention side (2505.07260). With rot the rotation, e the chosen experts, s the shared one:
//   q_e = rot(x W_q + (x A_e) B_e),  q_s = rot(x W_s),  k = rot(x W_k), one head;  m = softmax(q k^T / sqrt(K)) x
//   y = sum_e p_e F_e(m_e) + F_s(m_s),  F(u) = silu(u W1) W2
// Decoding keeps k and x. B batch, T tokens, N = B T, D model width, E experts, A active, K head width, F expert width.
#include "src/nn/experts/experts.h"
#include "weft/core/error.h"
#include "weft/core/scope.h"
#include "weft/nn/experts/router.h"
#include "weft/nn/mixers/experts.h"
#include "weft/nn/mixers/projected.h"

namespace weft {

namespace {

UmoeOptions checked(UmoeOptions o, const MixerArgs& args) {
  WEFT_CHECK(o.experts >= 1 && o.active >= 1 && o.active <= o.experts,
             str("umoe: ", o.active, " active of ", o.experts, " experts"), "use between 1 and all of them");
  if (o.head_dim == 0) o.head_dim = std::max<int64_t>(args.dim / 4 / 2 * 2, 2);
  if (o.hidden == 0) o.hidden = std::max<int64_t>(args.dim / 4, 1);
  WEFT_CHECK(o.query_rank >= 1 && o.head_dim >= 1 && o.hidden >= 1 && (!args.rotary || o.head_dim % 2 == 0),
             str("umoe: head_dim ", o.head_dim, ", hidden ", o.hidden, ", query_rank ", o.query_rank),
             "all are 1 or more, and rotation needs an even head_dim");
  return o;
}

class Umoe final : public Mixer {
 public:
  int64_t num_experts() const override { return o_.experts; }
  Umoe(const UmoeOptions& options, const MixerArgs& args, Rng rng)
      : o_(checked(options, args)),
        args_(args),
        router_({.experts = o_.experts,
                 .active = o_.active,
                 .weights = RouterWeights::raw,
                 .balance = RouterBalance::per_row,
                 .balance_loss = o_.balance_loss,
                 .has_fan_in_init = true},
                args.dim, args.layers, args.std, rng["router"]),
        q_(args.dim, o_.head_dim, rng["q"], {.std = args.std}),
        shared_q_(args.dim, o_.head_dim, rng["shared_q"], {.std = args.std}),
        k_(args.dim, o_.head_dim, rng["k"], {.std = args.std}),
        shared_up_(args.dim, o_.hidden, rng["shared_up"], {.std = args.std}),
        shared_down_(o_.hidden, args.dim, rng["shared_down"], {.std = args.out_std}),
        query_down_(normal_init({o_.experts, o_.query_rank, args.dim}, rng["query_down"], args.std)),
        query_up_(normal_init({o_.experts, o_.head_dim, o_.query_rank}, rng["query_up"], args.std)),
        up_(normal_init({o_.experts, o_.hidden, args.dim}, rng["up"], args.std)),
        down_(normal_init({o_.experts, args.dim, o_.hidden}, rng["down"], args.out_std)) {
    name_parts({{"router", router_},
                {"q", q_},
                {"shared_q", shared_q_},
                {"k", k_},
                {"shared_up", shared_up_},
                {"shared_down", shared_down_}});
    name_parts({{"query_down", query_down_}, {"query_up", query_up_}, {"up", up_}, {"down", down_}});
  }

  Var forward(const Var& x_BTD, Tokens& tokens) override {
    const std::string block = Scope::path();  // whose feed-forward network reads them
    tokens.share(shared_experts(block, "up"), up_);
    tokens.share(shared_experts(block, "down"), down_);
    Scope scope(name());
    const int64_t B = x_BTD.size(0), T = x_BTD.size(1), D = args_.dim, K = o_.head_dim, A = o_.active, N = B * T;
    const DType dtype = x_BTD.dtype();
    Routing r = router_(x_BTD, tokens);
    Tensor chosen_NA = r.chosen_BTK.reshape({N, A});
    auto of = [&](const Param& weights, int64_t e) { return cast(select(weights, 0, e), dtype); };
    Var own = run_experts(reshape(x_BTD, {N, D}), chosen_NA, o_.experts, o_.is_dense, [&](int64_t e, const Var& rows) {
      return linear(linear(rows, of(query_down_, e)), of(query_up_, e));
    });
    const Var queries[] = {reshape(own, {B, T, A, K}) + unsqueeze(q_(x_BTD), 2), unsqueeze(shared_q_(x_BTD), 2)};
    Var q = rotated(concatenate(queries, 2), args_, tokens), k = rotated(split_heads(k_(x_BTD), 1), args_, tokens);
    Var m = tokens.attend(q, k, unsqueeze(x_BTD, 2))[0];  // [B, T, A + 1, D]
    Var y_NAD =
        run_experts(reshape(slice(m, 2, 0, A), {N, A, D}), chosen_NA, o_.experts, o_.is_dense,
                    [&](int64_t e, const Var& rows) { return linear(silu(linear(rows, of(up_, e))), of(down_, e)); });
    Var routed = sum(y_NAD * reshape(cast(r.weights_BTK, dtype), {N, A, 1}), 1);
    return reshape(routed, {B, T, D}) + shared_down_(silu(shared_up_(select(m, 2, A))));
  }

  double flops_per_token(double keys) const override {
    const int64_t runs = o_.is_dense ? o_.experts : o_.active;
    int64_t per_run = o_.query_rank * (args_.dim + o_.head_dim) + 2 * args_.dim * o_.hidden;
    return 6.0 * static_cast<double>((o_.active + 1) * (o_.head_dim + args_.dim)) * keys +
           6.0 * static_cast<double>(runs * per_run);
  }
  int64_t num_expert_params() const override { return 2 * args_.dim * o_.hidden; }
  int64_t num_idle_params() const override {
    return (o_.experts - o_.active) * (o_.query_rank * (args_.dim + o_.head_dim) + num_expert_params());
  }

 private:
  UmoeOptions o_;
  MixerArgs args_;
  Router router_;
  Linear q_, shared_q_, k_, shared_up_, shared_down_;
  Param query_down_, query_up_;  // [E, rank, D], [E, K, rank]
  Param up_, down_;              // [E, F, D], [E, D, F]
};

}  // namespace

std::unique_ptr<Mixer> UmoeOptions::operator()(const MixerArgs& args, Rng rng) const {
  return std::make_unique<Umoe>(*this, args, rng);
}

}  // namespace weft
