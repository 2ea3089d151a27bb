// Mamba-2 (SSD, 2405.21060). Of z, x', B, C, s = linear maps of x, with x', B, C = silu(conv(.)):
//   d = softplus(s + bias),   S_t = exp(-exp(A_h) d_t) S_(t-1) + B_t^T d_t x'_t,   o_t = C_t S_t + D_h x'_t
//   y = (RMSNorm(o * silu(z)) per group) Wo
// B batch, T tokens, D model width, E = 2 D inner width, G groups of keys and queries, H heads, V = E / H.
#include "src/nn/mixers/recurrent/parts.h"
#include "weft/core/error.h"
#include "weft/nn/mixers/recurrent.h"

namespace weft {

namespace {

using namespace recurrent;

class Mamba2 final : public Mixer {
 public:
  Mamba2(const Mamba2Options& o, const MixerArgs& args, Rng rng)
      : o_(o),
        inner_(2 * args.dim),
        z_(args.dim, inner_, rng["z"], {.std = args.std}),
        x_(args.dim, inner_, rng["x"], {.std = args.std}),
        b_(args.dim, o.groups * o.state_dim, rng["b"], {.std = args.std}),
        c_(args.dim, o.groups * o.state_dim, rng["c"], {.std = args.std}),
        step_(args.dim, o.heads, rng["step"], {.std = args.std}),
        x_conv_(inner_, o.kernel, rng["x_conv"], {.has_bias = true}),
        b_conv_(o.groups * o.state_dim, o.kernel, rng["b_conv"], {.has_bias = true}),
        c_conv_(o.groups * o.state_dim, o.kernel, rng["c_conv"], {.has_bias = true}),
        log_rate_(log_rates(o.heads, 1, 16, rng["log_rate"])),
        step_bias_(step_biases(o.heads, rng["step_bias"])),
        skip_(Tensor::full({o.heads}, 1)),
        norm_gain_(Tensor::full({inner_}, 1)),
        out_(inner_, args.dim, rng["out"], {.std = args.out_std}) {
    name_parts({{"z", z_}, {"x", x_}, {"b", b_}, {"c", c_}, {"step", step_}});
    name_parts({{"x_conv", x_conv_}, {"b_conv", b_conv_}, {"c_conv", c_conv_}});
    name_parts({{"log_rate", log_rate_}, {"step_bias", step_bias_}, {"skip", skip_}, {"norm_gain", norm_gain_}});
    name_part({"out", out_});
  }

  Var forward(const Var& x_BTD, Tokens& tokens) override {
    Scope scope(name());
    const int64_t B = x_BTD.size(0), T = x_BTD.size(1), H = o_.heads, G = o_.groups;
    const DType dtype = x_BTD.dtype();
    Var x_BTHV = split_heads(x_conv_(x_(x_BTD), tokens), H);
    Var step_BTH = softplus(wide_linear(x_BTD, step_) + step_bias_);
    Var written = cast(cast(x_BTHV, wide(x_BTD)) * unsqueeze(step_BTH, 3), dtype);
    Var o_BTHV = tokens.recur({.q_BTGK = split_heads(c_conv_(c_(x_BTD), tokens), G),
                               .k_BTGK = split_heads(b_conv_(b_(x_BTD), tokens), G),
                               .v_BTHV = written,
                               .log_decay = floored(-(exp(log_rate_) * step_BTH))});
    Var skip = cast(reshape(skip_, {H, 1}), dtype);
    Var y_BTE = merge_heads(tokens.heads(o_BTHV + skip * x_BTHV)) * silu(z_(x_BTD));
    y_BTE = reshape(rms_normed(reshape(y_BTE, {B, T, G, inner_ / G}), 1e-5), {B, T, inner_});
    return out_(y_BTE * cast(norm_gain_, dtype));
  }

  double flops_per_token(double) const override { return recurrence_flops(o_.heads, o_.state_dim, inner_ / o_.heads); }

 private:
  Mamba2Options o_;
  int64_t inner_;
  Linear z_, x_, b_, c_, step_;
  ShortConv x_conv_, b_conv_, c_conv_;
  Param log_rate_, step_bias_, skip_, norm_gain_;
  Linear out_;
};

}  // namespace

std::unique_ptr<Mixer> Mamba2Options::operator()(const MixerArgs& args, Rng rng) const {
  check_heads("mamba2", heads, 2 * args.dim);
  WEFT_CHECK(groups >= 1 && heads % groups == 0 && state_dim >= 1 && kernel >= 1,
             str("mamba2: heads ", heads, ", groups ", groups, ", state_dim ", state_dim, ", kernel ", kernel),
             "choose groups among the divisors of heads, the others 1 or more");
  return std::make_unique<Mamba2>(*this, args, rng);
}

}  // namespace weft
