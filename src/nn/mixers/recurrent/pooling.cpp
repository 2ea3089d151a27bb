// Cheap controls: m_t = mean of v_j over j <= t, with v = x Wv.
//   mean        y = m Wo
//   broadcast   y = (v + m) / 2 Wo: context broadcasting (2210.08457), causal
// B batch, T tokens, D model width, H heads, K head width.
#include "src/nn/mixers/recurrent/parts.h"
#include "weft/nn/mixers/recurrent.h"

namespace weft {

namespace {

using namespace recurrent;

class Pooling final : public Mixer {
 public:
  Pooling(const PoolingOptions& o, const MixerArgs& args, Rng rng)
      : o_(o),
        dim_(args.dim),
        v_(args.dim, args.dim, rng["v"], {.std = args.std}),
        out_(args.dim, args.dim, rng["out"], {.std = args.out_std}) {
    name_parts({{"v", v_}, {"out", out_}});
  }

  Var forward(const Var& x_BTD, Tokens& tokens) override {
    Scope scope(name());
    const DType sums = wide(x_BTD);
    Var v = split_heads(v_(x_BTD), o_.heads);
    Var n_BT11 = cast(Var(tokens.visible_keys().unsqueeze(2).unsqueeze(3)), sums);
    Var y_BTHK = cast(tokens.scan(cast(v, sums)) / n_BT11, x_BTD.dtype());
    if (o_.kind == PoolingKind::broadcast) y_BTHK = (v + y_BTHK) * 0.5;
    return out_(merge_heads(tokens.heads(y_BTHK)));
  }

  double flops_per_token(double) const override { return 6.0 * static_cast<double>(dim_); }

 private:
  PoolingOptions o_;
  int64_t dim_;
  Linear v_, out_;
};

}  // namespace

std::unique_ptr<Mixer> PoolingOptions::operator()(const MixerArgs& args, Rng rng) const {
  check_heads("pooling", heads, args.dim);
  return std::make_unique<Pooling>(*this, args, rng);
}

}  // namespace weft
