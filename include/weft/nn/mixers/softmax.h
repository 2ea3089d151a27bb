// Softmax attention and its options: steps before, in and after one call of the core. Options can be combined; a combination that cannot work
// is refused by name. Order: project - mix keys and values over heads - gate or scale values - norm of queries and keys - gates on them -
// temperature - learned factors of the scores (that of l2 norms, score_scale) - rotation - core - sink - affine - norm per head - gate on
// the output - head mixture - output projection - gate on the layer's output.
#pragma once

#include <vector>

#include "weft/nn/mixer.h"

namespace weft {

// What the layer does with positions: the model's rotation; scores that fall linearly with distance (Press et al., 2108.12409); nothing.
enum class MixerPosition { model, alibi, none };

// rms: RMSNorm of each query and key head; heads share the gain. l2 (Henry et al., 2010.04245): queries and keys are unit vectors, and in
// place of 1/sqrt(K) each layer learns a scale of the scores, which starts at log2(context^2 - context). Gates and the temperature see unit
// vectors.
enum class QkNorm { none, rms, l2 };

// A gate made from the layer's input (Qiu et al., 2505.06708): act(x W) times, or plus, one of
enum class GatePosition { out, values, keys, queries, layer };           // G1 .. G5; layer: after the output projection
enum class GateActivation { sigmoid, silu, shifted_sigmoid, identity };  // shifted: 0.5 + 0.5 sigmoid
struct GateOptions {
  GatePosition position = GatePosition::out;
  GateActivation activation = GateActivation::sigmoid;
  bool is_per_head = false;     // one number per head instead of one per channel
  bool is_head_shared = false;  // the mean over heads gates every head
  bool is_additive = false;     // adds instead of multiplying
  bool reads_input = true;      // false: a parameter, at first 0, in place of x W
};

// Something that takes weight beside the keys (2410.10781). off_by_one: a weight e^0. logit: e^b with b per head (gpt-oss). key_bias: a key
// k*, at first N(0, std), whose value is 0. key_value_bias: such a key with a value. value_bias: a value that every query gets. The score
// of k* is scale q . k*, with q as it enters the core, and the soft cap acts on it. k* itself is not normed, gated or rotated, and ALiBi
// and windows do not act on it. So under rotation its score depends on the query's position in the document. 0 and b are not capped.
enum class SinkKind { none, off_by_one, logit, key_bias, key_value_bias, value_bias };
struct SinkOptions {
  SinkKind kind = SinkKind::none;
  bool is_head_shared = false;  // the same for all heads
};

// Affine scaling (Bae et al., 2602.23057): weights P become a P + (m - a) / N with a = act(x W) per query and head, and m the running mean
// of a.
struct AffineOptions {
  bool is_on = false;
  bool has_sigmoid = false;         // act: otherwise 0.1 x + 0.5 clipped to [0, 1]
  bool divides_by_context = false;  // N: the training context instead of the number of keys that the query sees
  double decay = 0.9, initial_mean = 0;
};

// Selective self-attention (2411.12892): queries times 1 + slope log(n) + tanh(f(x)), values times 1 + tanh(f'(x)). n is the position
// within the document, counted from 1, also if the row begins inside the document.
struct TemperatureOptions {
  bool has_position = false;  // slope = exp(-exp(beta)), beta at first 1.5
  bool has_token = false;     // f reads the head's own query
  bool scales_values = false;
  bool is_on() const { return has_position || has_token || scales_values; }
};

// How scores become weights. softmax; sign(s) times the softmax of |s| (Cog, 2411.07176); or each score by itself: sigmoid(s + b)
// (2409.04431), max(s, 0) / n^power (2309.08586), elu(s) + 1, 1 + s + s^2 / 2 (2510.11602). n is the number of keys that the query sees in
// its row; keys before the beginning of the row do not count.
enum class WeightKind { softmax, signed_softmax, sigmoid, relu, elu1, taylor2 };
enum class SigmoidBias { context, row, none };  // b: -log of the training context, of n, or 0
struct WeightOptions {
  WeightKind kind = WeightKind::softmax;
  bool keeps_ends = true;  // signed: the first and the last layer of the model stay softmax
  SigmoidBias bias = SigmoidBias::context;
  double power = 1;                // of relu
  bool is_divided_by_sum = false;  // not for softmax: weights are divided by (their sum + 1e-8), before dropout
  bool is_additive() const { return kind != WeightKind::softmax && kind != WeightKind::signed_softmax; }
};

// A mixture of heads (MoH, 2410.11842): a token uses the first `shared` heads and `active` of the others. Each head has a weight, made from
// the layer's input.
enum class HeadPath {
  automatic,
  dense,
  grouped
};  // grouped computes chosen heads only; equal to dense up to rounding. automatic: grouped where it is faster
struct HeadMixtureOptions {
  int64_t active = 0;  // of the heads that are not shared; 0: no mixture
  int64_t shared = 0;
  bool has_paper_scale =
      false;  // weights are bare probabilities; otherwise they are 1 on average, as in the authors' code
  bool reads_query_norm = false;  // scores are norms of queries; weights are 1, with the gradient of the probabilities
  HeadPath path = HeadPath::automatic;
  double balance_loss = 0.01;
  bool has_running_load = false;  // of the balance loss: see RouterOptions
};

// A mixture of heads of one's own: what becomes of the heads' outputs, before they are joined. y [B, T, H, V] -> the same.
struct HeadMixtureArgs {
  int64_t dim = 0, heads = 0, head_dim = 0;
  int64_t layer = 0, layers = 1;
  double std = 0.02;  // of initial weights
  CustomNumbers numbers = {};
  CustomTexts texts = {};
};
class OwnHeadMixture : public Module {
 public:
  virtual Var forward(const Var& y_BTHV, const Var& x_BTD, Tokens& tokens) = 0;  // x: the layer's input
};
using HeadMixtureMaker = std::function<std::unique_ptr<OwnHeadMixture>(const HeadMixtureArgs&, Rng)>;

// Attention of one's own in place of Tokens::attend(): {out [B, T, H, V], lse [B, T, H]} of q [B, T, H, K], k and v [B, T, G, K].
// functor_attention() in weft/nn/attend_with.h makes one from a mask and a score.
using OwnAttention = std::function<std::array<Var, 2>(Tokens&, const Var& q_BTHK, const Var& k_BTGK, const Var& v_BTGV,
                                                      const ops::AttentionOptions&)>;

struct SoftmaxOptions {
  int64_t heads = 1;
  int64_t kv_heads = 0;  // 0: heads (MHA); fewer: GQA; 1: MQA
  int64_t head_dim = 0;  // 0: dim / heads
  QkNorm qk_norm = QkNorm::none;
  int64_t window = 0;           // > 0: a token sees the last `window` tokens, itself included
  double softcap = 0;           // > 0: scores become cap * tanh(score / cap)
  bool has_bias = false;        // on q, k, v and out
  bool has_input_bias = false;  // on q, k and v, and not on out
  double dropout = 0;           // of the weights
  MixerPosition position = MixerPosition::model;
  WeightOptions weights = {};
  bool has_score_scale = false;  // a learned factor of the scores per head, at first 1; before the soft cap
  bool has_score_shift =
      false;  // a learned summand of the scores per head, at first 0; not for softmax, which it would not change
  TemperatureOptions temperature = {};
  int64_t components = 0;  // > 0: keys and values are learned mixtures of that many projected heads (MEA, 2601.19611)
  std::vector<GateOptions> gates = {};  // at most one per position
  SinkOptions sink = {};
  AffineOptions affine = {};
  bool has_head_norm = false;  // RMSNorm of each head's output, the gain shared by the heads
  bool has_out_silu = false;   // silu of each head's output: a control for gates
  HeadMixtureOptions head_mixture = {};
  HeadMixtureMaker own_heads = {};  // one's own, after the gate on the output
  OwnAttention own_attention = {};  // of softmax weights, without soft cap, ALiBi or a mixture of chosen heads

  std::unique_ptr<Mixer> operator()(const MixerArgs& args, Rng rng) const;
};

// The options with sizes filled in; Error for what does not go together.
SoftmaxOptions completed(SoftmaxOptions options, const MixerArgs& args);

using SoftmaxList = OptionsList<SoftmaxOptions>;

}  // namespace weft
