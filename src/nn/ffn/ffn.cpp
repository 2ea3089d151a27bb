// Feed-forward networks. B batch, T tokens, D model width, F hidden width.
#include "src/nn/ffn/umoe.h"
#include "weft/core/error.h"
#include "weft/nn/layers.h"

namespace weft {

namespace {

// SwiGLU (Shazeer, 2002.05202).
class SwigluFfn final : public Ffn {
 public:
  SwigluFfn(const FfnOptions& o, Rng rng)
      : gate_(o.dim, ffn_hidden(o), rng["gate"], {o.has_bias, o.std}),
        up_(o.dim, ffn_hidden(o), rng["up"], {o.has_bias, o.std}),
        down_(ffn_hidden(o), o.dim, rng["down"], {o.has_bias, o.out_std}) {
    name_parts({{"gate", gate_}, {"up", up_}, {"down", down_}});
  }
  Var forward(const Var& x_BTD, Tokens&) override { return down_(swiglu(gate_(x_BTD), up_(x_BTD))); }

 private:
  Linear gate_, up_, down_;
};

class GeluFfn final : public Ffn {
 public:
  GeluFfn(const FfnOptions& o, Rng rng)
      : up_(o.dim, ffn_hidden(o), rng["up"], {o.has_bias, o.std}),
        down_(ffn_hidden(o), o.dim, rng["down"], {o.has_bias, o.out_std}) {
    name_parts({{"up", up_}, {"down", down_}});
  }
  Var forward(const Var& x_BTD, Tokens&) override {
    if (up_.has_adapter() || down_.has_adapter()) return down_(gelu_tanh(up_(x_BTD)));
    const DType dtype = x_BTD.dtype();
    return gelu_mlp(x_BTD, up_.weight(), up_.bias_as(dtype), down_.weight(), down_.bias_as(dtype));
  }

 private:
  Linear up_, down_;
};

}  // namespace

int64_t ffn_hidden(const FfnOptions& options) {
  if (options.hidden > 0) return options.hidden;
  return options.kind == FfnKind::gelu ? 4 * options.dim : (8 * options.dim / 3 + 63) / 64 * 64;
}

std::unique_ptr<Ffn> make_ffn(const FfnOptions& options, Rng rng) {
  WEFT_CHECK(options.dim >= 1 && options.hidden >= 0, str("make_ffn: dim ", options.dim, ", hidden ", options.hidden),
             "dim must be 1 or more, hidden 0 (chosen) or more");
  if (options.kind == FfnKind::swiglu) return std::make_unique<SwigluFfn>(options, rng);
  if (options.kind == FfnKind::umoe) return make_umoe_ffn(options, rng);
  return std::make_unique<GeluFfn>(options, rng);
}

}  // namespace weft
