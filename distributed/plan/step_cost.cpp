#include "weft/distributed/step_cost.h"

#include <algorithm>

#include "weft/core/error.h"

namespace weft::dist {

namespace {

constexpr double kGradientBytes = 4;  // f32
constexpr double kOptimizerBytes =
    4.0 * 7;  // AdamW reads weight, gradient and two moments, and writes all but the gradient

}  // namespace

AttentionShape attention_shape(const TrainingShape& training, const MeshChoice& choice, const AttentionLayers& layers) {
  return {.rows = choice.micro_batch,
          .tokens = training.tokens,
          .ranks = choice.context,
          .heads = layers.heads,
          .kv_heads = layers.kv_heads,
          .width = layers.width,
          .bytes = training.bytes};
}

std::string to_string(const MeshChoice& c) {
  std::string text = str("data ", c.data, " x context ", c.context);
  if (c.context > 1) text += str(", ", to_string(c.scheme), ", ", to_string(c.layout));
  return text + str(", micro-batch ", c.micro_batch, c.recomputes ? ", recomputes" : "");
}

std::string mesh_problem(const TrainingShape& training, const MeshChoice& choice, const Hardware& hardware) {
  if (training.rows_per_step % (choice.data * choice.micro_batch) != 0)
    return str(training.rows_per_step, " sequences per step are not a multiple of ", choice.data, " data ranks x ",
               choice.micro_batch);
  if (training.tokens % (2 * choice.context) != 0)
    return str(training.tokens, " tokens are not a multiple of 2 x ", choice.context, " context ranks");
  if (choice.context == 1) return "";
  for (const AttentionLayers& layers : training.attention)
    if (std::string problem =
            scheme_problem(choice.scheme, attention_shape(training, choice, layers), hardware.ranks_per_node);
        !problem.empty())
      return problem;
  return "";
}

StepCost step_cost(const TrainingShape& training, const MeshChoice& choice, const Hardware& hardware) {
  if (std::string problem = mesh_problem(training, choice, hardware); !problem.empty())
    fail(str("step_cost: ", to_string(choice), ": ", problem), "use another choice, such as one of mesh_choices()");
  const double micro_batches = static_cast<double>(training.rows_per_step / (choice.data * choice.micro_batch));
  const double tokens = static_cast<double>(choice.micro_batch * training.tokens) / choice.context;
  StepCost cost;
  const double linear = 2 * training.matmul_params * tokens / hardware.gemm_flops;
  double forward = 0, backward = 0;
  for (const AttentionLayers& layers : training.attention) {
    std::vector<double> pairs = causal_lockstep_pairs(choice.layout, training.tokens, choice.context);
    for (double& p : pairs) p *= layers.share;
    const SchemeCost one = attention_cost(choice.scheme, attention_shape(training, choice, layers), pairs, hardware);
    const double count = static_cast<double>(layers.layers);
    forward += count * one.forward_s, backward += count * one.backward_s;
    cost.context_sent += micro_batches * count * (one.forward_sent + one.backward_sent);
    cost.context_bytes = std::max(cost.context_bytes, one.extra_bytes);  // layers run one after the other
  }
  cost.linear_s = micro_batches * (choice.recomputes ? 4 : 3) * linear;
  cost.attention_s = micro_batches * (forward + backward);
  cost.optimizer_s = kOptimizerBytes * training.params / hardware.memory_bytes_per_s;
  const double gradients = kGradientBytes * training.params;
  cost.reduce_s = all_reduce_time(gradients, choice.ranks(), hardware);
  cost.gradients_sent = 2 * gradients * (choice.ranks() - 1) / choice.ranks();
  cost.exposed_reduce_s = std::max(0.0, cost.reduce_s - 2 * linear - backward);  // of the last micro-batch
  cost.step_s = cost.linear_s + cost.attention_s + cost.optimizer_s + cost.exposed_reduce_s;
  return cost;
}

std::vector<MeshChoice> mesh_choices(const TrainingShape& training, int ranks, const Hardware& hardware) {
  std::vector<MeshChoice> choices;
  for (int context = 1; context <= ranks; ++context) {
    if (ranks % context != 0) continue;
    for (int64_t micro_batch = 1; micro_batch <= training.rows_per_step; micro_batch *= 2)
      for (bool recomputes : {false, true})
        for (CostedScheme scheme : costed_schemes())
          for (LayoutKind layout : {LayoutKind::contiguous, LayoutKind::striped, LayoutKind::zigzag}) {
            if (context == 1 && (scheme != CostedScheme::ring || layout != LayoutKind::contiguous)) continue;
            const MeshChoice choice{.data = ranks / context,
                                    .context = context,
                                    .micro_batch = micro_batch,
                                    .recomputes = recomputes,
                                    .scheme = scheme,
                                    .layout = layout};
            if (mesh_problem(training, choice, hardware).empty()) choices.push_back(choice);
          }
  }
  return choices;
}

}  // namespace weft::dist
