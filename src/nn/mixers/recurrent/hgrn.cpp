// HGRN2 (2404.07904) and HGRN (2311.04823). Decays f have a lower bound per channel and layer, which grows from layer to layer:
//   f = c_l + (1 - c_l) sigmoid(x Wf),   c_l = sum of softmax(M)_j over layers j = 1 .. l, of a matrix M [layers, D] of the model
// HGRN2   S_t = Diag(f_t) S_(t-1) + (1 - f_t)^T x_t Wv,   o_t = silu(x_t Wq) S_t / sqrt(K),   y = RMSNorm(o) Wo
// HGRN    h_t = f_t * h_(t-1) + (1 - f_t) * silu(x_t Wv),   y = (RMSNorm(h) * silu(x Wg)) Wo
// With a kernel, x Wf, x Wv and of HGRN2 x Wq are convolved over the last tokens first.
// B batch, T tokens, D model width, H heads, K = D / H.
#include "src/nn/mixers/recurrent/parts.h"
#include "weft/core/error.h"
#include "weft/nn/mixers/recurrent.h"

namespace weft {

namespace {

using namespace recurrent;

// The matrix M, which all layers of a model have together. As a vector it stays f32 beside bf16 weights.
std::shared_ptr<Param> model_bounds(const MixerArgs& args) {
  std::shared_ptr<Param> own;
  std::shared_ptr<Param>& bounds = args.of_model ? (*args.of_model)["hgrn.bounds"] : own;
  if (!bounds) bounds = std::make_shared<Param>(Tensor::zeros({args.layers * args.dim}));
  return bounds;
}

class Hgrn final : public Mixer {
 public:
  Hgrn(const HgrnOptions& o, const MixerArgs& args, Rng rng)
      : heads_(o.heads),
        dim_(args.dim),
        layer_(args.layer),
        layers_(args.layers),
        bounds_(model_bounds(args)),
        decay_(dim_, dim_, rng["decay"], {.std = args.std}),
        v_(dim_, dim_, rng["v"], {.std = args.std}),
        q_(dim_, dim_, rng[o.heads > 0 ? "q" : "gate"], {.std = args.std}),
        decay_conv_(dim_, o.kernel, rng["decay_conv"], {.has_silu = false}),
        v_conv_(dim_, o.kernel, rng["v_conv"], {.has_silu = false}),
        q_conv_(dim_, o.heads > 0 ? o.kernel : 0, rng["q_conv"], {.has_silu = false}),
        norm_(dim_, {.eps = 1e-5}),
        out_(dim_, dim_, rng["out"], {.std = args.out_std}) {
    name_parts({{"bounds", *bounds_}, {"decay", decay_}, {"v", v_}, {heads_ > 0 ? "q" : "gate", q_}});
    name_parts({{"decay_conv", decay_conv_}, {"v_conv", v_conv_}, {"q_conv", q_conv_}});
    name_parts({{"norm", norm_}, {"out", out_}});
  }

  Var forward(const Var& x_BTD, Tokens& tokens) override {
    Scope scope(name());
    Var odds_BTD = log_odds(x_BTD, tokens), g_BTD = floored(log_sigmoid(odds_BTD));
    Var write_BTD = cast(sigmoid(-odds_BTD), x_BTD.dtype());
    Var v_BTD = v_conv_(v_(x_BTD), tokens);
    if (heads_ == 0) {
      Var h = tokens.decay_scan(silu(v_BTD) * write_BTD, g_BTD);
      return out_(norm_(h) * silu(q_(x_BTD)));
    }
    auto split = [&](const Var& x) { return split_heads(x, heads_); };
    Var o = tokens.recur({split(silu(q_conv_(q_(x_BTD), tokens))), split(write_BTD), split(v_BTD), split(g_BTD)},
                         {.scale = inverse_root(dim_ / heads_)});
    return out_(norm_(merge_heads(tokens.heads(o))));
  }

  double flops_per_token(double) const override {
    if (heads_ == 0) return 6.0 * static_cast<double>(dim_);
    return recurrence_flops(heads_, dim_ / heads_, dim_ / heads_);
  }

 private:
  // log(f / (1 - f)), of which both f and 1 - f keep their digits where they are small. By f = c + (1 - c) sigmoid(z) it is
  // log(c / (1 - c) (1 + e^z) + e^z), a sum of two numbers in logs. The bound of the first layer is 0.
  Var log_odds(const Var& x_BTD, Tokens& tokens) {
    Var z = decay_conv_(wide_linear(x_BTD, decay_), tokens);
    if (layer_ == 0) return z;
    // 1 - c is the sum of the other shares: as a difference it is 0 where they are small.
    Var shares = log_softmax(reshape(*bounds_, {layers_, dim_}), 0);
    std::vector<Var> others{slice(shares, 0, 0, 1)};
    if (layer_ + 1 < layers_) others.push_back(slice(shares, 0, layer_ + 1, layers_));
    Var bound = logsumexp(slice(shares, 0, 1, layer_ + 1), 0) - logsumexp(concatenate(others, 0), 0);
    Var low = softplus(z) + bound;
    return maximum(low, z) + softplus(-abs(low - z));
  }

  int64_t heads_, dim_, layer_, layers_;
  std::shared_ptr<Param> bounds_;
  Linear decay_, v_, q_;
  ShortConv decay_conv_, v_conv_, q_conv_;
  Norm norm_;
  Linear out_;
};

}  // namespace

std::unique_ptr<Mixer> HgrnOptions::operator()(const MixerArgs& args, Rng rng) const {
  if (heads != 0) check_heads("hgrn", heads, args.dim);
  check_kernel("hgrn", kernel);
  WEFT_CHECK(args.layer >= 0 && args.layer < args.layers, str("hgrn: layer ", args.layer, " of ", args.layers),
             "MixerArgs names the layer, from 0 on, and how many there are");
  return std::make_unique<Hgrn>(*this, args, rng);
}

}  // namespace weft
