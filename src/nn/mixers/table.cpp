// Every token mixer of the library, one row per published point.
#include <optional>
#include <type_traits>
#include <utility>

#include "weft/core/error.h"
#include "weft/nn/mixers.h"

namespace weft {

namespace {

using Rows = std::vector<MixerRow>;

// Points of the softmax mixer: heads, positions, masks, scores.
Rows softmax_rows() {
  return {
      {"mha", SoftmaxOptions{.heads = 4}, "softmax(q k^T / sqrt(K)) v", "1706.03762"},
      {"gqa", SoftmaxOptions{.heads = 4, .kv_heads = 2}, "mha, groups of heads share k and v", "2305.13245"},
      {"mqa", SoftmaxOptions{.heads = 4, .kv_heads = 1}, "mha, all heads share k and v", "1911.02150"},
      {"nope", SoftmaxOptions{.heads = 2, .position = MixerPosition::none}, "mha without rotation", "2305.19466"},
      {"alibi", SoftmaxOptions{.heads = 2, .position = MixerPosition::alibi}, "softmax(s - m_h (i - j)) v",
       "2108.12409"},
      {"window",
       SoftmaxOptions{.heads = 2, .window = 3},
       "mha over the last W tokens",
       "2004.05150",
       "T W",
       {},
       MixerRow::Toy::recent},
      {"soft_cap", SoftmaxOptions{.heads = 2, .softcap = 4}, "softmax(cap tanh(s / cap)) v", "2408.00118"},
      {"dropout", SoftmaxOptions{.heads = 2, .dropout = 0.2}, "dropout(softmax(s)) v", "1706.03762"},
      {"qk_norm", SoftmaxOptions{.heads = 2, .qk_norm = QkNorm::rms}, "mha of RMSNorm(q), RMSNorm(k)", "2505.09388"},
      {"qk_norm_l2", SoftmaxOptions{.heads = 2, .qk_norm = QkNorm::l2}, "softmax(g q/|q| (k/|k|)^T) v", "2010.04245"},
      {"score_scale", SoftmaxOptions{.heads = 2, .has_score_scale = true}, "softmax(g_h s) v", ""},
      {"head_norm", SoftmaxOptions{.heads = 2, .has_head_norm = true}, "RMSNorm(mha) per head", "2505.06708"},
      {"out_silu", SoftmaxOptions{.heads = 2, .has_out_silu = true}, "silu(mha) per head", "2505.06708"},
      {"mea", SoftmaxOptions{.heads = 4, .components = 4, .has_head_norm = true},
       "k_m = sum_n M_nm x W_n, v too; RMSNorm per head", "2601.19611"},
      {"mea_virtual", SoftmaxOptions{.heads = 4, .components = 2, .has_head_norm = true},
       "mea with fewer projected than mixed heads", "2601.19611"},
      {"selective", SoftmaxOptions{.heads = 2, .temperature = {true, true, true}},
       "softmax((1 + b log n + tanh f(q)) s) (1 + tanh f'(v)) v", "2411.12892"},
  };
}

// Qiu et al., 2505.06708: positions, granularities, activations and forms.
Rows gate_rows() {
  auto row = [](const char* name, const GateOptions& gate, std::string_view equation) {
    return MixerRow{name, SoftmaxOptions{.heads = 4, .kv_heads = 2, .gates = {gate}}, equation, "2505.06708"};
  };
  using enum GatePosition;
  return {
      row("gate_out", {}, "mha * sigmoid(x W)"),
      row("gate_out_head", {.is_per_head = true}, "mha * sigmoid(x W)_h"),
      row("gate_out_shared", {.is_head_shared = true}, "mha * mean_h sigmoid(x W)"),
      row("gate_out_constant", {.reads_input = false}, "mha * sigmoid(b)"),
      row("gate_out_silu", {.activation = GateActivation::silu}, "mha * silu(x W)"),
      row("gate_out_shifted", {.activation = GateActivation::shifted_sigmoid}, "mha * (0.5 + 0.5 sigmoid(x W))"),
      row("gate_out_add_silu", {.activation = GateActivation::silu, .is_additive = true}, "mha + silu(x W)"),
      row("gate_out_add", {.activation = GateActivation::identity, .is_additive = true}, "mha + x W"),
      row("gate_values", {.position = values}, "v * sigmoid(x W)"),
      row("gate_values_head", {.position = values, .is_per_head = true}, "v * sigmoid(x W)_g"),
      row("gate_values_shared", {.position = values, .is_head_shared = true}, "v * mean_g sigmoid(x W)"),
      row("gate_keys", {.position = keys}, "k * sigmoid(x W)"),
      row("gate_keys_head", {.position = keys, .is_per_head = true}, "k * sigmoid(x W)_g"),
      row("gate_queries", {.position = queries}, "q * sigmoid(x W)"),
      row("gate_queries_head", {.position = queries, .is_per_head = true}, "q * sigmoid(x W)_h"),
      row("gate_layer", {.position = layer}, "(mha W_O) * sigmoid(x W)"),
  };
}

Rows sink_rows() {
  auto row = [](const char* name, const SinkOptions& sink, std::string_view equation, std::string_view source) {
    return MixerRow{name, SoftmaxOptions{.heads = 4, .kv_heads = 2, .sink = sink}, equation, source};
  };
  return {
      row("sink_off_by_one", {SinkKind::off_by_one}, "e^s / (1 + sum e^s)", "2410.10781"),
      row("sink_logit", {SinkKind::logit}, "e^s / (e^b_h + sum e^s)", "2508.10925"),
      row("sink_logit_shared", {SinkKind::logit, true}, "e^s / (e^b + sum e^s)", "2410.10781"),
      row("sink_key", {SinkKind::key_bias}, "a key k*_h with value 0", "2410.10781"),
      row("sink_key_shared", {SinkKind::key_bias, true}, "a key k* with value 0", "2410.10781"),
      row("sink_key_value", {SinkKind::key_value_bias}, "a key k*_h with value v*_h", "2410.10781"),
      row("sink_value", {SinkKind::value_bias}, "mha + v*_h", "2410.10781"),
  };
}

Rows weight_rows() {
  auto row = [](const char* name, const WeightOptions& weights, std::string_view equation, std::string_view source) {
    return MixerRow{name, SoftmaxOptions{.heads = 4, .kv_heads = 2, .weights = weights}, equation, source};
  };
  using enum WeightKind;
  return {
      row("cog", {.kind = signed_softmax}, "sign(s) exp(|s|) / sum exp(|s|)", "2411.07176"),
      row("sigmoid", {.kind = sigmoid}, "sigmoid(s - log T) v", "2409.04431"),
      {"sigmoid_shift",
       SoftmaxOptions{
           .heads = 4, .kv_heads = 2, .weights = {.kind = sigmoid, .bias = SigmoidBias::none}, .has_score_shift = true},
       "sigmoid(s + b_h) v", "2409.04431"},
      row("sigmoid_row", {.kind = sigmoid, .bias = SigmoidBias::row}, "sigmoid(s - log N_i) v", "2409.04431"),
      row("sigmoid_bare", {.kind = sigmoid, .bias = SigmoidBias::none}, "sigmoid(s) v", "2410.10781"),
      row("sigmoid_sum", {.kind = sigmoid, .bias = SigmoidBias::none, .is_divided_by_sum = true},
          "sigmoid(s) / sum sigmoid(s)", "2410.10781"),
      row("relu", {.kind = relu}, "max(s, 0) / N_i v", "2309.08586"),
      row("relu_bare", {.kind = relu, .power = 0}, "max(s, 0) v", "2309.08586"),
      row("elu1", {.kind = elu1}, "(elu(s) + 1) v", "2410.10781"),
      row("approximate", {.kind = taylor2, .is_divided_by_sum = true}, "(1 + s + s^2/2) / sum (1 + s + s^2/2)",
          "2510.11602"),
      row("elu1_sum", {.kind = elu1, .is_divided_by_sum = true}, "(elu(s) + 1) / sum (elu(s) + 1)", "2410.10781"),
  };
}

Rows affine_rows() {
  auto row = [](const char* name, SoftmaxOptions options, std::string_view equation) {
    return MixerRow{name, std::move(options), equation, "2602.23057"};
  };
  AffineOptions visible{.is_on = true, .initial_mean = 0.5}, context = visible, smooth = visible;
  context.divides_by_context = true;
  smooth.has_sigmoid = true;
  return {
      row("affine", {.heads = 4, .kv_heads = 2, .affine = visible}, "(a P + (m - a) / N_i) v, a = clip(x W)"),
      row("affine_context", {.heads = 2, .affine = context}, "(a P + (m - a) / T) v"),
      row("affine_sigmoid", {.heads = 2, .affine = smooth}, "affine with a = sigmoid(x W)"),
      row("affine_gate", {.heads = 2, .gates = {{}}, .affine = visible}, "affine * sigmoid(x W)"),
  };
}

Rows composed_rows() {
  using enum SimplifiedKind;
  using enum DeconstructedKind;
  const std::string_view square = "T^2 H K", quadratic_memory = "T^2 work, T^2 memory";
  const std::string_view neighbours = "its convolutions run over neighbouring queries and keys";
  return {
      {"mla", MlaOptions{.heads = 2}, "softmax([q, rot(q')] [c U, rot(k')]^T) c V, c = RMSNorm(x W)", "2405.04434"},
      {"mla_q", MlaOptions{.heads = 2, .q_rank = 8}, "mla with q from RMSNorm(x W)", "2405.04434"},
      {"nexus", NexusOptions{.heads = 2}, "mha(mha(q, q, q), mha(k, k, k), v)", "2512.03377", "3 T^2"},
      {"nexus_grouped", NexusOptions{.heads = 4, .kv_heads = 2, .has_qk_norm = true}, "nexus of normed q and k",
       "2512.03377", "2.5 T^2"},
      {"nexus_order3", NexusOptions{.heads = 2, .order = 3}, "nexus of nexus' q and k", "2512.03377", "5 T^2"},
      {"nexus_values", NexusOptions{.heads = 2, .has_values_of_layer = true}, "mha(mha(q, q, v), mha(k, k, v), v)",
       "2512.03377", "3 T^2"},
      {"hopfield", HopfieldOptions{.heads = 2}, "q <- softmax(b q k^T) k; softmax(b q k^T) v", "2008.02217", "2 T^2"},
      {"hopfield_steps", HopfieldOptions{.heads = 4, .kv_heads = 2, .steps = 3}, "hopfield, three updates",
       "2008.02217", "4 T^2"},
      {"fox", ForgettingOptions{.heads = 4, .kv_heads = 2}, "softmax(s_ij + sum_(j < l <= i) log sigmoid(x_l W + b)) v",
       "2503.02130"},
      {"fox_rope", ForgettingOptions{.heads = 2, .has_rotation = true}, "fox of rotated q and k", "2503.02130"},
      {"differential", DifferentialOptions{.heads = 4, .kv_heads = 2},
       "(1 - c) RMSNorm((softmax(q1 k1^T) - l softmax(q2 k2^T)) v), l = c + e^(a1 b1) - e^(a2 b2)", "2410.05258",
       "1.5 T^2"},
      {"optimised", SimplifiedOptions{optimised, 2}, "mha with v = x", "2403.01643"},
      {"efficient", SimplifiedOptions{efficient, 2}, "mha with k = v = x", "2403.01643"},
      {"super", SimplifiedOptions{super, 2}, "mha with k = x, v_i = sum_j W_ij x_j", "2403.01643", quadratic_memory},
      {"none",
       DeconstructedOptions{none, 2},
       "(silu(x W) * x U) V",
       "2510.11602",
       "T",
       {.heads = "channels, no heads"},
       MixerRow::Toy::token},
      {"key_only",
       DeconstructedOptions{key_only, 2},
       "softmax_j(silu(x_j W) . x_j U) v",
       "2510.11602",
       {},
       {},
       MixerRow::Toy::token},
      {"random_embedding",
       DeconstructedOptions{random_embedding, 2},
       "mha, q and k from a fixed random sequence",
       "2510.11602",
       {},
       {},
       MixerRow::Toy::token},
      {"fixed_text",
       DeconstructedOptions{fixed_text, 2},
       "mha, q and k from a fixed text",
       "2510.11602",
       {},
       {},
       MixerRow::Toy::token},
      {"static_embedding", DeconstructedOptions{static_embedding, 2}, "mha, q and k from the input embedding",
       "2510.11602"},
      {"nap", NapOptions{.heads = 4, .kv_heads = 2}, "(g (s - mean s) / std s + b) / sqrt(n) v", "2005.09561"},
      {"nap_window",
       NapOptions{.heads = 2, .window = 4},
       "nap over the last W tokens",
       "2005.09561",
       "T W",
       {},
       MixerRow::Toy::recent},
      {"nap_sum", NapOptions{.heads = 2, .divides_by_root = false}, "(g (s - mean s) / std s + b) v", "2005.09561"},
      {"dual", DualOptions{.heads = 1, .relational_heads = 1}, "mha, and P (r W + s V) with relations r, symbols s",
       "2405.16727", "T^2 (R + 2)"},
      {"dual_heads", DualOptions{.heads = 2, .relational_heads = 2, .relations = 3, .symbols = 4},
       "dual, two heads of each kind", "2405.16727", "T^2 (R + 2)"},
      // Phases turn by 2 pi times a product: rounding x and the weights to bf16 alone moves them by tenths here.
      {"tapa",
       TapaOptions{.heads = 2},
       "softmax(A cos(2 pi (i - j)^0.1 phi)) v",
       "2509.12635",
       square,
       {},
       MixerRow::Toy::recall,
       0.1,
       0.15},
      {"tapa_window",
       TapaOptions{.heads = 4, .kv_heads = 2, .window = 5},
       "tapa over the last W tokens",
       "2509.12635",
       square,
       {},
       MixerRow::Toy::token,
       0.1,
       0.15},
      {"neural", NeuralOptions{.heads = 2, .hidden = 4}, "softmax(relu(relu([q, k] W) U) . w) v", "2502.17206",
       "T^2 H (P^2 + K)"},
      {"rcmha", RcmhaOptions{.heads = 4, .kv_heads = 2},
       "softmax((q + u) k^T + (q + t) (R W)^T) v of conv(q), conv(k), conv(v)", "2308.03429", square},
      {"relative_bias", RelativeBiasOptions{.heads = 2, .buckets = 6, .max_distance = 8}, "softmax(s + b_h(i - j)) v",
       "1910.10683", square},
      {"lla", LocalLinearOptions{.heads = 4, .kv_heads = 2},
       "sum a v / sum a, a = w (1 - z . (sum w z z^T + r)^-1 sum w z), z = k - q, w = e^s, q and k normed",
       "2510.01450", "T^2 H K steps"},
      {"tlinformer", TlinformerOptions{.heads = 2, .depth = 3, .window = 4, .rows = 3, .hidden = 12},
       "m layers of softmax over the last W tokens + softmax over R rows, which read the history in the first layer",
       "2508.20407", "T^2 H K + m T (W + R) H K"},
      {"multi_token",
       MultiTokenOptions{.heads = 2, .query_kernel = 2, .key_kernel = 3},
       "RMSNorm(mix_h softmax(conv(s)) v) * gate",
       "2504.00927",
       quadratic_memory,
       {.order = neighbours}},
      {"multi_token_all",
       MultiTokenOptions{.heads = 4,
                         .query_kernel = 3,
                         .key_kernel = 3,
                         .has_weight_conv = true,
                         .mixes_scores = true,
                         .group = 2,
                         .has_gate = false},
       "multi_token, weights convolved and scores mixed too",
       "2504.00927",
       quadratic_memory,
       {.order = neighbours}},
  };
}

Rows expert_rows() {
  const std::string_view depends = "rows of an expert's product depend on the choices of all tokens",
                         experts = "experts that each token chooses, no heads that all tokens have";
  const MixerRow::Lacks grouped{.exact_causality = depends}, no_heads{.heads = experts},
      grouped_experts{.exact_causality = depends, .heads = experts};
  const MixerRow::Lacks through{.gradient = "weights are 1 with the gradient of the probabilities, as published"};
  const MixerRow::Lacks cut{.gradient = "the router's gradient leaves out the sum of the chosen, as published",
                            .heads = experts};
  auto moh = [](const char* name, HeadMixtureOptions mixture, std::string_view equation, MixerRow::Lacks lacks = {}) {
    return MixerRow{
        name, SoftmaxOptions{.heads = 4, .kv_heads = 2, .head_mixture = mixture}, equation, "2410.11842", {}, lacks};
  };
  return {
      moh("moh", {.active = 1, .shared = 2, .path = HeadPath::dense}, "g_h(x) mha, g from shared and chosen heads"),
      moh("moh_routed", {.active = 2, .path = HeadPath::dense}, "moh without shared heads"),
      moh("moh_paper", {.active = 2, .shared = 1, .has_paper_scale = true, .path = HeadPath::dense},
          "moh weighted by bare probabilities"),
      moh("moh_query_norm", {.active = 2, .shared = 1, .reads_query_norm = true, .path = HeadPath::dense},
          "moh, heads chosen by |q|", through),
      moh("moh_running_load", {.active = 2, .shared = 1, .path = HeadPath::dense, .has_running_load = true},
          "moh, balanced against a running load"),
      moh("moh_grouped", {.active = 1, .shared = 2, .path = HeadPath::grouped}, "moh, work for chosen heads only",
          grouped),
      {"moa",
       MoaOptions{.experts = 4, .active = 2, .is_dense = true},
       "sum_e w_e mqa(x W_e) U_e",
       "2210.05144",
       {},
       cut,
       MixerRow::Toy::recall,
       0.2},
      {"moa_renorm",
       MoaOptions{.experts = 4, .active = 2, .is_detached = false, .is_dense = true},
       "moa with the whole gradient",
       "2210.05144",
       {},
       no_heads,
       MixerRow::Toy::recall,
       0.2},
      {"moa_noise",
       MoaOptions{.experts = 4, .active = 2, .has_noise = true, .is_detached = false, .is_dense = true},
       "moa, noisy choice in training",
       "2210.05144",
       {},
       no_heads,
       MixerRow::Toy::recall,
       0.2},
      {"moa_grouped",
       MoaOptions{.experts = 4, .active = 2, .is_detached = false},
       "moa, chosen experts only",
       "2210.05144",
       {},
       grouped_experts,
       MixerRow::Toy::recall,
       0.2},
      {"umoe",
       UmoeOptions{.experts = 4, .active = 2, .query_rank = 3, .is_dense = true},
       "sum_e p_e F_e(softmax(q_e k^T) x) + F(softmax(q k^T) x)",
       "2505.07260",
       {},
       no_heads},
      {"umoe_grouped",
       UmoeOptions{.experts = 4, .active = 2, .query_rank = 3},
       "umoe, chosen experts only",
       "2505.07260",
       {},
       grouped_experts},
  };
}

// Recurrences: a state of constant size in place of scores.
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
      delta("delta_net", {.heads = 2}, "S = (1 - b k^T k) S + b k^T v of normed k; RMSNorm(q S)", "2406.06484"),
      delta("delta_net_negative", {.heads = 2, .kernel = 2, .has_negative_eigenvalues = true},
            "delta_net with b up to 2", "2411.12537"),
      delta("gated_delta_net", {.decay = DeltaDecay::head, .heads = 4, .key_heads = 2},
            "S = a (1 - b k^T k) S + b k^T v, a = exp(-A softplus(x W)); RMSNorm(q S) silu(x U)", "2412.06464"),
      delta("kda", {.decay = DeltaDecay::channel, .heads = 2},
            "S = (1 - b k^T k) Diag(a) S + b k^T v; RMSNorm(q S) sigmoid(x U V)", "2510.26692"),
      delta("kda_safe", {.decay = DeltaDecay::channel, .heads = 2, .kernel = 0, .has_safe_gate = true},
            "kda with a = exp(-5 sigmoid(A (x F G + d))), no convolution", "2510.26692"),
      row("linear_attention", LinearAttentionOptions{.heads = 2}, "RMSNorm(f(q) S / f(q) z), f = elu + 1", "2006.16236",
          matrix),
      row("fast", LinearAttentionOptions{.feature_map = FeatureMap::taylor2, .heads = 4},
          "sum f(s) v / sum f(s), f(s) = 1 + s + s^2 / 2, q and k standardised", "2402.07901", "T H K^2 V"),
      row("retnet", RetnetOptions{.heads = 2}, "S = (1 - 2^(-5 - h)) S + k^T v of rotated q, k; RMSNorm(q S) silu(x W)",
          "2307.08621", matrix),
      row("lightning", LightningOptions{.heads = 2},
          "S = exp(-2^(-8(h+1)/H)(1 - l/(L-1) + 1e-5)) S + k^T v; norm(q S) sigmoid(x U V)", "2405.17381", matrix),
      row("lightning_linear", LightningOptions{.decay = LightningDecay::linear, .heads = 2},
          "lightning with S = exp(-8 h / H (1 - l / L)) S + k^T v", "2401.04658", matrix),
      row("mamba2", Mamba2Options{.heads = 4, .state_dim = 6},
          "S = exp(-A d) S + B^T d x, o = C S + D x; RMSNorm(o silu(z))", "2405.21060", matrix),
      row("mamba2_groups", Mamba2Options{.heads = 4, .groups = 2, .state_dim = 4, .kernel = 3},
          "mamba2, groups of heads share B and C", "2405.21060", matrix),
      row("hgrn2", HgrnOptions{.heads = 2}, "S = Diag(f) S + (1 - f)^T v, f = c_l + (1 - c_l) sigmoid(x W)",
          "2404.07904", matrix),
      {"hgrn", HgrnOptions{.heads = 0}, "h = f h + (1 - f) silu(x V), f = c_l + (1 - c_l) sigmoid(x W)", "2311.04823",
       "T D", channels},
      row("gsa", GatedSlotsOptions{.heads = 2, .slots = 6},
          "softmax(q Z) Y, Z = Z Diag(f) + k^T (1 - f), Y = Diag(f) Y + (1 - f)^T v", "2409.07146", "T H M K"),
      slots("lightnet", {.heads = 2, .gate_rank = 4}, "silu(q) softmax_j(k_j)^T v; RMSNorm(o) silu(x U V)",
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

// Attention and a recurrence within one layer.
Rows hybrid_rows() {
  const std::string_view hard_types = "what is chosen has the gradient of a softmax";
  return {
      {"hymba", HymbaOptions{.heads = 4, .kv_heads = 2, .window = 3, .state = 5},
       "(RMSNorm(mha of the last W) + RMSNorm(mamba2 silu(z))) / 2 W_O", "2411.13676", "T W + T H K N"},
      {"hymba_meta", HymbaOptions{.heads = 2, .kernel = 2, .meta = 3},
       "hymba over all tokens, with M learned keys, values and a learned first state", "2411.13676", ""},
      {"rat", RatOptions{.heads = 4, .chunk = 3},
       "softmax over the gated means k' of earlier chunks of C and k'_t itself, times v'; sigmoid(x W)", "2507.04416",
       ""},
      {"rat_long", RatOptions{.heads = 2, .chunk = 64, .groups = 1}, "rat within one chunk: v'_t sigmoid(x W)",
       "2507.04416", ""},
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

const Rows& rows() {
  static const Rows table = [] {
    Rows all;
    for (const Rows& part : {softmax_rows(), weight_rows(), gate_rows(), sink_rows(), affine_rows(), composed_rows(),
                             expert_rows(), recurrent_rows(), hybrid_rows()})
      all.insert(all.end(), part.begin(), part.end());
    return all;
  }();
  return table;
}

}  // namespace

std::span<const MixerRow> mixer_table() { return rows(); }

const MixerRow& mixer_row(std::string_view name) {
  std::string names;
  for (const MixerRow& row : rows()) {
    if (row.name == name) return row;
    names += str(names.empty() ? "" : ", ", row.name);
  }
  fail(str("mixer: there is no '", name, "'"), str("choose one of: ", names));
}

std::unique_ptr<Mixer> MixerRow::operator()(MixerArgs args, Rng rng) const {
  args.numbers.insert(numbers.begin(), numbers.end());
  args.texts.insert(texts.begin(), texts.end());
  return make(args, rng);
}

namespace {

template <size_t... I>
std::optional<MixerOptions> listed(const MixerMaker& make, std::index_sequence<I...>) {
  std::optional<MixerOptions> found;
  auto try_one = [&]<class Options>(std::type_identity<Options>) {
    if (const auto* options = make.target<Options>()) found = *options;
  };
  (try_one(std::type_identity<std::variant_alternative_t<I, MixerOptions>>()), ...);
  return found;
}

}  // namespace

MixerOptions options_of(const MixerRow& row) {
  std::optional<MixerOptions> found = listed(row.make, std::make_index_sequence<std::variant_size_v<MixerOptions>>());
  WEFT_CHECK(found.has_value(), str("mixer ", row.name, ": its maker is none of MixerOptions"),
             "add its options struct to MixerOptions in weft/nn/mixers.h");
  return *found;
}

}  // namespace weft
