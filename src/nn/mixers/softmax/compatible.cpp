// Which options of softmax attention exist together; errors name what does.
#include "src/nn/mixers/softmax/softmax.h"
#include "weft/core/error.h"

namespace weft {

namespace {

void check_sizes(const SoftmaxOptions& o, const MixerArgs& args) {
  WEFT_CHECK(args.dim >= 1 && o.heads >= 1, str("softmax: dim ", args.dim, ", heads ", o.heads),
             "both must be 1 or more");
  WEFT_CHECK(o.kv_heads >= 1 && o.heads % o.kv_heads == 0,
             str("softmax: heads ", o.heads, " is not a multiple of kv_heads ", o.kv_heads),
             "choose kv_heads among the divisors of heads");
  WEFT_CHECK(o.head_dim >= 1, str("softmax: dim ", args.dim, " is not a multiple of heads ", o.heads),
             "set head_dim, or change heads");
  WEFT_CHECK(o.position != MixerPosition::model || !args.rotary || o.head_dim % 2 == 0,
             str("softmax: head_dim ", o.head_dim, " is odd"), "rotation needs an even head_dim");
  WEFT_CHECK(o.window >= 0 && o.softcap >= 0 && o.dropout >= 0 && o.dropout < 1,
             str("softmax: window ", o.window, ", softcap ", o.softcap, ", dropout ", o.dropout),
             "window and softcap are 0 (off) or positive, dropout lies in [0, 1)");
}

void check_gates(const SoftmaxOptions& o) {
  for (size_t i = 0; i < o.gates.size(); ++i) {
    const GateOptions& gate = o.gates[i];
    const std::string name = str("softmax: gate on ", name_of(gate.position));
    for (size_t j = 0; j < i; ++j)
      WEFT_CHECK(o.gates[j].position != gate.position, str(name, " twice"), "give one gate per position");
    WEFT_CHECK(gate.is_additive || gate.activation != GateActivation::identity,
               str(name, " multiplies by the bare projection"),
               "identity goes with an additive gate; multiplying gates have sigmoid, silu or shifted_sigmoid");
    WEFT_CHECK(gate.position != GatePosition::layer || (!gate.is_per_head && !gate.is_head_shared),
               str(name, " is per head or head-shared, but there are no heads after the output projection"),
               "gates with heads stand on out, values, keys or queries");
  }
}

void check_weights(const SoftmaxOptions& o, const MixerArgs& args) {
  const WeightOptions& w = o.weights;
  WEFT_CHECK(o.sink.kind == SinkKind::none || o.sink.kind == SinkKind::value_bias || !w.is_additive(),
             "softmax: a sink beside sigmoid, relu, elu1 or taylor2 weights, which have no lse that it could share",
             "use softmax or signed_softmax weights, or a value_bias");
  WEFT_CHECK(w.kind != WeightKind::signed_softmax ||
                 (o.sink.kind != SinkKind::key_bias && o.sink.kind != SinkKind::key_value_bias),
             "softmax: a key as a sink beside signed weights", "use off_by_one, logit or value_bias");
  WEFT_CHECK(w.is_additive() || !w.is_divided_by_sum, "softmax: weights divided by their sum, which is 1 already",
             "leave it out, or use sigmoid, relu, elu1 or taylor2 weights");
  WEFT_CHECK(!o.has_score_shift || w.kind != WeightKind::softmax,
             "softmax: a score shift under softmax weights, which it leaves as they are",
             "use other weights, or a sink of kind logit");
  WEFT_CHECK(!o.has_score_shift || o.softcap == 0, "softmax: a score shift under a soft cap", "use one of them");
  WEFT_CHECK(w.power >= 0, str("softmax: relu power ", w.power), "use 0 (no division) or more");
  if (w.kind != WeightKind::sigmoid) return;
  WEFT_CHECK(w.bias != SigmoidBias::context || args.context >= 1,
             str("softmax: the sigmoid's bias is -log of the context, which is ", args.context),
             "give the training context");
  WEFT_CHECK(w.bias != SigmoidBias::row || o.softcap == 0, "softmax: a sigmoid bias per row under a soft cap",
             "use bias context or none, or no soft cap");
}

}  // namespace

std::string_view name_of(GatePosition position) {
  switch (position) {
    case GatePosition::out: return "out";
    case GatePosition::values: return "values";
    case GatePosition::keys: return "keys";
    case GatePosition::queries: return "queries";
    case GatePosition::layer: break;
  }
  return "layer";
}

SoftmaxOptions completed(SoftmaxOptions o, const MixerArgs& args) {
  if (o.kv_heads == 0) o.kv_heads = o.heads;
  if (o.head_dim == 0 && o.heads >= 1 && args.dim % o.heads == 0) o.head_dim = args.dim / o.heads;
  check_sizes(o, args);
  check_gates(o);
  check_weights(o, args);
  WEFT_CHECK(o.components >= 0 && (o.components == 0 || o.kv_heads % o.components == 0),
             str("softmax: ", o.components, " components for ", o.kv_heads, " kv_heads"),
             "use a divisor of kv_heads, or 0 for none");
  WEFT_CHECK(o.components == 0 || !(o.has_bias || o.has_input_bias), "softmax: components with biases",
             "leave the biases out: mixed heads have weights only");
  WEFT_CHECK(!(o.has_bias && o.has_input_bias), "softmax: biases on all projections and on those of the input",
             "choose one of the two");
  WEFT_CHECK(!(o.qk_norm == QkNorm::l2 && o.has_score_scale),
             "softmax: a learned score scale beside the one of l2 norms", "use one of them");
  const HeadMixtureOptions& m = o.head_mixture;
  WEFT_CHECK(m.active >= 0 && m.shared >= 0 && m.shared + m.active <= o.heads && (m.active > 0 || m.shared == 0),
             str("softmax: head mixture of ", m.shared, " shared and ", m.active, " chosen of ", o.heads, " heads"),
             "shared and chosen heads together are at most all heads, and at least one is chosen");
  WEFT_CHECK(m.path != HeadPath::grouped || o.dropout == 0,
             "softmax: a grouped head mixture with dropout of weights, which are keyed by head",
             "use path dense or automatic");
  WEFT_CHECK(
      !o.own_attention || (o.softcap == 0 && o.position != MixerPosition::alibi && m.active == 0 &&
                           o.weights.kind == WeightKind::softmax && !o.affine.is_on),
      "softmax: own attention beside a soft cap, ALiBi, other weights, affine scaling or a mixture of chosen heads",
      "put the score into the functor, or leave the option out");
  WEFT_CHECK(!(o.affine.is_on && o.affine.divides_by_context && args.context < 1),
             str("softmax: affine divides by the context, which is ", args.context), "give the training context");
  return o;
}

}  // namespace weft
