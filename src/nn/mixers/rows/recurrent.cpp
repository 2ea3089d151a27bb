// Recurrences: a state of constant size in place of scores.
#include <utility>

#include "src/nn/mixers/rows/rows.h"

namespace weft {

Rows recurrent_rows() {
  const MixerRow::Lacks channels{.heads = "channels, no heads"};
  const std::string_view matrix = "T H K V";
  auto row = [&](const char* name, MixerMaker make, std::string_view equation, std::string_view source,
                 std::string_view cost) {
    return MixerRow{name, std::move(make), equation, source, cost};
  };
  auto delta = [&](const char* name, const DeltaOptions& o, std::string_view equation, std::string_view source) {
    return row(name, o, equation, source, matrix);
  };
  auto miras = [&](const char* name, const MirasOptions& o, std::string_view equation) {
    return row(name, o, equation, "2504.13173", matrix);
  };
  auto slots = [&](const char* name, const AdditiveSlotsOptions& o, std::string_view equation,
                   std::string_view source) { return row(name, o, equation, source, "T H M K"); };
  return {
      row("gla", GlaOptions{.heads = 2, .gate_rank = 4},
          "S = Diag(a) S + k^T v, o = q S; RMSNorm(o) silu(x W), a = sigmoid(x U V)^(1/16)", "2312.06635", matrix),
      row("gla_conv", GlaOptions{.heads = 2, .gate_rank = 4, .kernel = 4}, "gla of q, k, v = silu(conv(x W))",
          "2312.06635", matrix),
      row("gla_clamped", GlaOptions{.heads = 2, .gate_rank = 4, .clamp_min = -0.05}, "gla with a of exp(-0.05) or more",
          "2312.06635", matrix),
      delta("delta_net", {.heads = 2}, "S = (1 - b k^T k) S + b k^T v of normed k; RMSNorm(q S)", "2406.06484"),
      delta("delta_net_negative", {.heads = 2, .kernel = 2, .has_negative_eigenvalues = true},
            "delta_net with b up to 2", "2411.12537"),
      delta("gated_delta_net", {.decay = DeltaDecay::head, .heads = 4, .key_heads = 2},
            "S = a (1 - b k^T k) S + b k^T v, a = exp(-A softplus(x W)); RMSNorm(q S) silu(x U)", "2412.06464"),
      delta("gated_delta_net_negative", {.decay = DeltaDecay::head, .heads = 2, .has_negative_eigenvalues = true},
            "gated_delta_net with b up to 2", "2411.12537"),
      delta("kda", {.decay = DeltaDecay::channel, .heads = 2},
            "S = (1 - b k^T k) Diag(a) S + b k^T v; RMSNorm(q S) sigmoid(x U V)", "2510.26692"),
      delta("kda_safe", {.decay = DeltaDecay::channel, .heads = 2, .kernel = 0, .has_safe_gate = true},
            "kda with a = exp(-5 sigmoid(A (x F G + d))), no convolution", "2510.26692"),
      delta("kda_negative", {.decay = DeltaDecay::channel, .heads = 2, .has_negative_eigenvalues = true},
            "kda with b up to 2", "2411.12537"),
      row("linear_attention", LinearAttentionOptions{.heads = 2}, "RMSNorm(f(q) S / f(q) z), f = elu + 1", "2006.16236",
          matrix),
      row("linear_attention_conv", LinearAttentionOptions{.heads = 2, .kernel = 4},
          "linear_attention of q, k, v = silu(conv(x W))", "2006.16236", matrix),
      row("fast", LinearAttentionOptions{.feature_map = FeatureMap::taylor2, .heads = 4},
          "sum f(s) v / sum f(s), f(s) = 1 + s + s^2 / 2, q and k standardised", "2402.07901", "T H K^2 V"),
      row("retnet", RetnetOptions{.heads = 2}, "S = (1 - 2^(-5 - h)) S + k^T v of rotated q, k; RMSNorm(q S) silu(x W)",
          "2307.08621", matrix),
      row("retnet_conv", RetnetOptions{.heads = 2, .kernel = 4}, "retnet of q, k, v = silu(conv(x W))", "2307.08621",
          matrix),
      row("lightning", LightningOptions{.heads = 2},
          "S = exp(-2^(-8(h+1)/H)(1 - l/(L-1) + 1e-5)) S + k^T v; norm(q S) sigmoid(x U V)", "2405.17381", matrix),
      row("lightning_linear", LightningOptions{.decay = LightningDecay::linear, .heads = 2},
          "lightning with S = exp(-8 h / H (1 - l / L)) S + k^T v", "2401.04658", matrix),
      row("lightning_conv", LightningOptions{.heads = 2, .kernel = 4}, "lightning of q, k, v = silu(conv(x W))",
          "2405.17381", matrix),
      row("mamba2", Mamba2Options{.heads = 4, .state_dim = 6},
          "S = exp(-A d) S + B^T d x, o = C S + D x; RMSNorm(o silu(z))", "2405.21060", matrix),
      row("mamba2_groups", Mamba2Options{.heads = 4, .groups = 2, .state_dim = 4, .kernel = 3},
          "mamba2, groups of heads share B and C", "2405.21060", matrix),
      row("hgrn2", HgrnOptions{.heads = 2}, "S = Diag(f) S + (1 - f)^T v, f = c_l + (1 - c_l) sigmoid(x W)",
          "2404.07904", matrix),
      row("hgrn2_conv", HgrnOptions{.heads = 2, .kernel = 4}, "hgrn2 of conv(x W) for x W", "2404.07904", matrix),
      {"hgrn", HgrnOptions{.heads = 0}, "h = f h + (1 - f) silu(x V), f = c_l + (1 - c_l) sigmoid(x W)", "2311.04823",
       "T D", channels},
      {"hgrn_conv", HgrnOptions{.heads = 0, .kernel = 4}, "hgrn of conv(x W) for x W, conv(x V) for x V", "2311.04823",
       "T D", channels},
      row("gsa", GatedSlotsOptions{.heads = 2, .slots = 6},
          "softmax(q Z) Y, Z = Z Diag(f) + k^T (1 - f), Y = Diag(f) Y + (1 - f)^T v", "2409.07146", "T H M K"),
      row("gsa_conv", GatedSlotsOptions{.heads = 2, .slots = 6, .kernel = 4}, "gsa of q, k, v = silu(conv(x W))",
          "2409.07146", "T H M K"),
      row("gsa_grouped", GatedSlotsOptions{.heads = 4, .kv_heads = 2, .slots = 5},
          "gsa, groups of heads share k, v and f", "2409.07146", "T H M K"),
      slots("lightnet", {.heads = 2, .gate_rank = 4}, "silu(q) softmax_j(k_j)^T v; RMSNorm(o) silu(x U V)",
            "2405.21022"),
      slots("lightnet_conv", {.heads = 2, .gate_rank = 4, .kernel = 4}, "lightnet of q, k, v = conv(x W)",
            "2405.21022"),
      slots("efficient_attention", {.kind = SlotKind::efficient, .heads = 2}, "softmax_c(q) softmax_j(k_j)^T v",
            "1812.01243"),
      slots("agent", {.kind = SlotKind::agent, .heads = 2, .slots = 5},
            "softmax_m(q A^T) softmax_j(A k_j^T) v + conv(v)", "2312.08874"),
      slots("flare", {.kind = SlotKind::flare, .heads = 2, .slots = 5}, "softmax_m(k A^T) softmax_j(A k_j^T) v",
            "2508.12594"),
      row("flowformer", FlowOptions{.heads = 2}, "sigmoid(I') (q I / n) sum k^T w v, w = n softmax_j(R'_j)",
          "2202.06258", matrix),
      row("rala", RalaOptions{.heads = 2}, "(q sum w k^T v / q sum w k + conv(v)) x W, w = n softmax_j(mean(q) k_j)",
          "2411.07635", matrix),
      miras("moneta", {.kind = MirasKind::moneta, .heads = 2, .chunk = 4},
            "A = a A - b k^T 3 tanh(10 e) (e^2 + 1e-6), e = k W - v, W = A / max(1, |A|_4)^2; RMSNorm(q W) silu(x U)"),
      miras("yaad", {.heads = 2, .chunk = 3, .kernel = 2},
            "W = a W - b k^T e min(1, d / |e|), e = k W - v of the chunk's first W; RMSNorm(q W) silu(x U)"),
      miras("memora", {.kind = MirasKind::memora, .heads = 2, .chunk = 4},
            "W = softmax_c(a log W - b K k^T e), e = k W - v of the chunk's first W; RMSNorm(q W) silu(x U)"),
      {"causal_pooling", PoolingOptions{.heads = 2}, "mean_(j <= i) v_j", "", "T D"},
      {"context_broadcasting", PoolingOptions{.kind = PoolingKind::broadcast, .heads = 2},
       "(v_i + mean_(j <= i) v_j) / 2", "2210.08457", "T D"},
  };
}

}  // namespace weft
