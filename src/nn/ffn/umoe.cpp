// UMoE's feed-forward network (2505.07260): y = sum of p_e F_e(x) over the chosen + F_shared(x),  F(u) = silu(u W1) W2
// with the experts that the block's mixer shares.
// B batch, T tokens, N = B T, D model width, K chosen.
#include "src/nn/ffn/umoe.h"

#include "src/nn/experts/experts.h"
#include "weft/core/error.h"
#include "weft/core/scope.h"
#include "weft/nn/experts/router.h"

namespace weft {

namespace {

class UmoeFfn final : public Ffn {
 public:
  UmoeFfn(const FfnOptions& o, Rng rng)
      : router_({.experts = experts(o),
                 .active = o.active,
                 .weights = RouterWeights::raw,
                 .balance = RouterBalance::per_row,
                 .balance_loss = 0.001,
                 .has_fan_in_init = true},
                o.dim, o.layers, o.std, rng["router"]),
        up_(o.dim, ffn_hidden(o), rng["up"], {.std = o.std}),
        down_(ffn_hidden(o), o.dim, rng["down"], {.std = o.out_std}),
        is_dense_(o.is_dense) {
    name_parts({{"router", router_}, {"up", up_}, {"down", down_}});
  }

  Var forward(const Var& x_BTD, Tokens& tokens) override {
    const std::string path = Scope::path();
    const size_t dot = path.rfind('.');
    const std::string block = dot == std::string::npos ? "" : path.substr(0, dot);
    Var w1 = tokens.shared(shared_experts(block, "up")), w2 = tokens.shared(shared_experts(block, "down"));
    WEFT_CHECK(w1.size(0) == router_.options().experts,
               str("umoe: the feed-forward network routes to ", router_.options().experts, " experts, the mixer has ",
                   w1.size(0)),
               "give both the same number");
    const int64_t B = x_BTD.size(0), T = x_BTD.size(1), D = x_BTD.size(2);
    Routing r = router_(x_BTD, tokens);
    const int64_t K = r.chosen_BTK.size(2);
    auto expert = [&](int64_t e, const Var& rows) {
      return linear(silu(linear(rows, cast(select(w1, 0, e), rows.dtype()))), cast(select(w2, 0, e), rows.dtype()));
    };
    Var y_NKD =
        run_experts(reshape(x_BTD, {B * T, D}), r.chosen_BTK.reshape({B * T, K}), w1.size(0), is_dense_, expert);
    Var weights = unsqueeze(cast(r.weights_BTK, x_BTD.dtype()), -1);
    return sum(reshape(y_NKD, {B, T, K, D}) * weights, 2) + down_(silu(up_(x_BTD)));
  }

 private:
  static int64_t experts(const FfnOptions& o) {
    WEFT_CHECK(o.experts >= 1 && o.active >= 1 && o.active <= o.experts,
               str("umoe: the feed-forward network chooses ", o.active, " of ", o.experts, " experts"),
               "choose between 1 and all of them");
    return o.experts;
  }

  Router router_;
  Linear up_, down_;  // the shared expert
  bool is_dense_;
};

}  // namespace

std::unique_ptr<Ffn> make_umoe_ffn(const FfnOptions& options, Rng rng) {
  return std::make_unique<UmoeFfn>(options, rng);
}

}  // namespace weft
