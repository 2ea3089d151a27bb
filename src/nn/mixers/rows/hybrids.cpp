// Attention and a recurrence within one layer.
#include "src/nn/mixers/rows/rows.h"

namespace weft {

Rows hybrid_rows() {
  const std::string_view hard_types = "what is chosen has the gradient of a softmax";
  return {
      {"hymba", HymbaOptions{.heads = 4, .kv_heads = 2, .window = 3, .state = 5},
       "(RMSNorm(mha of the last W) + RMSNorm(mamba2 silu(z))) / 2 W_O", "2411.13676", "T W + T H K N"},
      {"hymba_meta", HymbaOptions{.heads = 2, .kernel = 2, .meta = 3},
       "hymba over all tokens, with M learned keys, values and a learned first state", "2411.13676", ""},
      {"rat", RatOptions{.heads = 4, .chunk = 3},
       "softmax over the gated means k' of earlier chunks of C and k'_t itself, times v'; sigmoid(x W)", "2507.04416",
       "attention / C + T H K"},
      {"rat_long", RatOptions{.heads = 2, .chunk = 64, .groups = 1}, "rat within one chunk: v'_t sigmoid(x W)",
       "2507.04416", "attention / C + T H K"},
      {"nats",
       NatsOptions{.heads = 4, .kv_heads = 2, .window = 2},
       "mha of j with i - j < W, or j global, or j local and nothing global since; types by x W_t",
       "2502.13251",
       "3 attention",
       {.gradient = hard_types}},
      {"nats_l",
       NatsLinearOptions{.heads = 2, .chunk = 3, .kernel = 2},
       "w_0 RMSNorm(mha of own and softmax chunks) + w_1 RMSNorm(gated_delta_net of linear chunks)",
       "2602.03681",
       "",
       {.gradient = hard_types}},
      {"hysparse", HySparseOptions{.heads = 4, .kv_heads = 2, .sparse = 0, .block = 3, .blocks = 2, .window = 2},
       "sigmoid(x A) mha of the M blocks of the largest p + sigmoid(x B) mha of the last W", "2602.03560",
       "attention + T (M C + W)"},
      {"flux",
       FluxOptions{.heads = 4, .kv_heads = 2, .window = 4, .prompt = 3, .hidden = 5, .full_target = 1},
       "mha, or mha of the last W where silu(mean_(t < P) x_t A) B says so",
       "2604.07394",
       "",
       {.gradient = hard_types}},
      {"linear_window",
       ReplacementOptions{.heads = 4, .kv_heads = 2, .window = 3},
       "sum f(q) f(k_j) v_j / sum f(q) f(k_j) over the last W, f = elu + 1",
       "2604.22050",
       "T W",
       {},
       MixerRow::Toy::recent,
       0.5},
      {"identity",
       ReplacementOptions{.kind = ReplacementKind::identity, .heads = 4, .kv_heads = 2},
       "x W_V W_O",
       "2604.22050",
       "T",
       {},
       MixerRow::Toy::token},
  };
}

}  // namespace weft
