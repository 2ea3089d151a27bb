#include "weft/distributed/step_cost.h"

#include <algorithm>

#include "weft/core/error.h"
#include "weft/distributed/segment_counts.h"

namespace weft::dist {

namespace {

constexpr double kGradientBytes = 4;  // f32, and so are weights
constexpr double kOptimizerBytes =
    4.0 * 7;  // AdamW reads weight, gradient and two moments, and writes all but the gradient

bool is_scan(const CarryShape& shape) { return !shape.is_elementwise && choose_carry(shape).carry == Carry::scan; }

// Bytes of the states of chunks that a layer of plain recurrences keeps between forward and backward, of the rank that has most of them. A scan keeps
// none.
double kept_states(const CarryShape& shape, std::span<const RankSegments> ranks, int64_t rows) {
  constexpr int64_t kTokens = 64;  // that ops::recur_states() keeps a state for
  if (shape.ranks == 1 || shape.is_delta || shape.is_elementwise || is_scan(shape)) return 0;
  int64_t states = 0;
  for (const RankSegments& of : ranks)
    states = std::max(states, rows * of.segments * shape.heads * ((of.length + kTokens - 1) / kTokens + 1));
  return static_cast<double>(states * shape.key_width * shape.value_width * static_cast<int64_t>(size_of(shape.dtype)));
}

// Operations of a recurrence of one head, forward and for one token, in chunks of C: products of keys with the state and with the keys of a chunk.
double head_flops(const CarryShape& shape) {
  constexpr double kChunk = 64;
  const auto keys = static_cast<double>(shape.key_width), values = static_cast<double>(shape.value_width);
  const double read_and_written = 4 * keys * values, in_chunk = 2 * kChunk * (keys + values);
  return (shape.is_delta ? 2 : 1) *
         (read_and_written + in_chunk);  // the delta rule reads the state before it writes, too
}

// Tokens of a row as each rank of the layout has them.
std::vector<RankTokens> tokens_of_ranks(const Layout& layout, std::span<const int32_t> documents) {
  std::vector<RankTokens> ranks;
  for (int r = 0; r < layout.ranks(); ++r) {
    RankTokens& of = ranks.emplace_back(RankTokens{.positions = layout.positions(r)});
    for (int32_t position : of.positions) {
      const bool is_padding = position >= layout.tokens();
      of.documents.push_back(is_padding ? -1 : documents.empty() ? 0 : documents[static_cast<size_t>(position)]);
    }
  }
  return ranks;
}

Layout layout_of(LayoutKind kind, int64_t tokens, int ranks, const TokenMask& mask, int64_t block) {
  switch (kind) {
    case LayoutKind::contiguous: return Layout::contiguous(tokens, ranks);
    case LayoutKind::striped: return Layout::striped(tokens, ranks, block);
    case LayoutKind::zigzag: return Layout::zigzag(tokens, ranks);
    case LayoutKind::balanced: return Layout::balanced(tokens, ranks, mask, block);
  }
  fail("step cost: no such layout", "use one of LayoutKind");
}

// Of a row that is one document.
std::vector<RankSegments> segments_of_ranks(const TrainingShape& training, const MeshChoice& choice) {
  if (choice.context == 1) return {};
  return segments_of(layout_of(choice.layout, training.tokens, choice.context, {}, training.block));
}

// Of a micro-batch over the ranks of the choice.
CarryShape carry_shape(const TrainingShape& training, const MeshChoice& choice, const Hardware& hardware, size_t kind) {
  CarryShape shape = training.recurrences[kind].shape;
  shape.ranks = choice.context, shape.is_on_gpu = hardware.has_engines;
  if (choice.context > 1)
    shape.segments =
        counts_of(layout_of(choice.layout, training.tokens, choice.context, {}, training.block), choice.micro_batch);
  return shape;
}

}  // namespace

std::string to_string(const MeshChoice& c) {
  std::string text = str("data ", c.data, " x context ", c.context);
  if (c.context > 1) text += str(", ", to_string(c.scheme), ", ", to_string(c.layout));
  return text + str(", micro-batch ", c.micro_batch, c.recomputes ? ", recomputes" : "");
}

ContextShape StepPlanner::shape(const MeshChoice& choice, size_t kind) const {
  const AttentionLayers& layers = training_.attention[kind];
  const ContextShape heads{.ranks = choice.context,
                           .batch = choice.micro_batch,
                           .tokens = (training_.tokens + choice.context - 1) / choice.context,
                           .heads = layers.heads,
                           .kv_heads = layers.kv_heads,
                           .key_width = layers.key_width,
                           .value_width = layers.value_width,
                           .dtype = training_.dtype,
                           .has_documents = !training_.documents.empty()};
  if (layers.latent == 0 || choice.context == 1) return heads;
  ContextShape latent = heads;
  latent.kv_heads = 1, latent.are_values_in_keys = true;
  latent.key_width = layers.latent + layers.rotated, latent.value_width = layers.latent;
  return is_latent_sent(choice.scheme, options(choice, kind), heads, latent) ? latent : heads;
}

SchemeOptions StepPlanner::options(const MeshChoice& choice, size_t kind) const {
  return default_options(choice.scheme, choice.context, training_.attention[kind].heads, hardware_.ranks_per_node);
}

int64_t StepPlanner::rows_at_once(const MeshChoice& choice) const {
  return std::clamp<int64_t>(choice.micro_batch, 1, std::max<int64_t>(std::ssize(training_.documents), 1));
}

const std::vector<HopPlan>& StepPlanner::plans(const MeshChoice& choice, size_t kind) {
  const int64_t window = training_.attention[kind].window, at_once = rows_at_once(choice);
  std::vector<HopPlan>& plans = plans_[{choice.layout, choice.context, window, at_once}];
  if (!plans.empty()) return plans;
  const bool is_causal_only = training_.documents.empty() && (window == 0 || window >= training_.tokens);
  if (is_causal_only) {
    plans.push_back(causal_plan(choice.layout, training_.tokens, choice.context, training_.block));
    return plans;
  }
  std::vector<HopPlan> rows;
  for (size_t row = 0; row < std::max<size_t>(training_.documents.size(), 1); ++row) {
    const TokenMask mask{.window = window,
                         .documents = training_.documents.empty() ? std::vector<int32_t>() : training_.documents[row]};
    const Layout layout = layout_of(choice.layout, training_.tokens, choice.context, mask, training_.block);
    rows.push_back(plan_hops(tokens_of_ranks(layout, mask.documents), 1, mask));
  }
  const auto each = static_cast<size_t>(at_once);
  for (size_t row = 0; row + each <= rows.size(); row += each)
    plans.push_back(joined(std::span(rows).subspan(row, each)));
  return plans;
}

std::string StepPlanner::problem(const MeshChoice& choice) const {
  if (training_.rows_per_step % (choice.data * choice.micro_batch) != 0)
    return str(training_.rows_per_step, " sequences per step are not a multiple of ", choice.data, " data ranks x ",
               choice.micro_batch);
  if (choice.context > training_.tokens || choice.context > kMostContext)
    return str(training_.tokens, " tokens over ", choice.context, " context ranks (at most ", kMostContext, ")");
  if (choice.context == 1) return "";
  for (size_t kind = 0; kind < training_.attention.size(); ++kind)
    if (std::string problem =
            scheme_problem(choice.scheme, choice.context, training_.attention[kind].heads, options(choice, kind));
        !problem.empty())
      return problem;
  if (choice.layout == LayoutKind::striped || choice.layout == LayoutKind::balanced)
    for (const RecurrentLayers& layers : training_.recurrences)
      if (const int64_t least = shortest_stripe(layers.shape, choice.context); training_.block < least)
        return str(to_string(choice.layout), " blocks of ", training_.block,
                   " tokens are too short for recurrences over ", choice.context, " ranks (", least, " at least)");
  return "";
}

SchemeCost StepPlanner::attention(const MeshChoice& choice, size_t kind) {
  auto [entry, is_new] = costs_.try_emplace({kind, choice.scheme, choice.layout, choice.context, choice.micro_batch});
  if (!is_new) return entry->second;
  const std::vector<HopPlan>& all = plans(choice, kind);
  SchemeCost mean;
  const double share = 1.0 / static_cast<double>(all.size());
  const AttentionLayers& layers = training_.attention[kind];
  for (const HopPlan& plan : all) {
    const SchemeCost one = attention_cost(choice.scheme, options(choice, kind),
                                          {.shape = shape(choice, kind),
                                           .plan = plan,
                                           .rows = rows_at_once(choice),
                                           .share = layers.share,
                                           .forward_flops = layers.forward_flops,
                                           .backward_flops = layers.backward_flops},
                                          hardware_);
    mean.forward_s += share * one.forward_s, mean.backward_s += share * one.backward_s;
    mean.forward_sent += share * one.forward_sent, mean.backward_sent += share * one.backward_sent;
  }
  return entry->second = mean;
}

double StepPlanner::attention_memory(const MeshChoice& choice, size_t kind) {
  if (choice.context == 1) return 0;
  auto [entry, is_new] = memory_.try_emplace({kind, choice.scheme, choice.context});
  if (is_new) {
    MeshChoice of_row = choice;
    of_row.micro_batch = 1;
    entry->second = scheme_memory(choice.scheme, options(choice, kind), shape(of_row, kind));
  }
  return static_cast<double>(choice.micro_batch) * entry->second;
}

SchemeCost StepPlanner::carry(const MeshChoice& choice, size_t kind) const {
  if (choice.context == 1) return {};
  const CarryShape shape = carry_shape(training_, choice, hardware_, kind);
  const CarryBytes bytes = carry_bytes(shape);
  const Link& link = choice.context <= hardware_.ranks_per_node ? hardware_.inside : hardware_.between;
  const bool scans = is_scan(shape);
  const auto forward = static_cast<double>(scans ? bytes.scan : bytes.gather_forward),
             backward = static_cast<double>(scans ? bytes.scan : bytes.gather_backward);
  // Of a scan, each segment waits for the one before it with a first head, its work and its message; the others travel beside work.
  const double waits = static_cast<double>(shape.segments.longest - 1),
               first = link.time(static_cast<double>(shape.key_width * shape.value_width) *
                                 static_cast<double>(size_of(shape.dtype)));
  const double segment =
                   static_cast<double>(choice.micro_batch * training_.tokens) / static_cast<double>(shape.segments.all),
               work = head_flops(shape) * segment / hardware_.gemm_flops;
  return {.forward_s = scans ? waits * (first + work) : link.time(forward),
          .backward_s = scans ? waits * (first + 2 * work) : link.time(backward),
          .forward_sent = forward,
          .backward_sent = backward};
}

SchemeCost StepPlanner::neighbours(const MeshChoice& choice, size_t kind) const {
  if (choice.context == 1) return {};
  const NeighbourCalls& of = training_.neighbours[kind];
  // From the ends of each of its runs to other ranks; where a run is cut into segments, nothing is sent.
  int64_t runs = 0;
  for (const RankSegments& rank : segments_of_ranks(training_, choice))
    runs = std::max(runs, choice.micro_batch * rank.runs);
  const auto numbers = static_cast<double>(runs * of.tokens * of.numbers);
  const double sent = static_cast<double>(of.calls) * numbers * static_cast<double>(size_of(of.dtype));
  const Link& link = choice.context <= hardware_.ranks_per_node ? hardware_.inside : hardware_.between;
  const double time = static_cast<double>(of.calls) * link.latency_s + sent / link.bytes_per_s;
  return {.forward_s = time, .backward_s = time, .forward_sent = sent, .backward_sent = sent};
}

StepPlanner::Balance StepPlanner::balance(const MeshChoice& choice, size_t kind) {
  const std::vector<HopPlan>& all = plans(choice, kind);
  Balance mean{0, 0};
  for (const HopPlan& plan : all) {
    mean.hops += plan.lockstep_pairs() / static_cast<double>(all.size());
    mean.ranks += plan.rank_pairs() / static_cast<double>(all.size());
  }
  return mean;
}

StepCost StepPlanner::cost(const MeshChoice& choice) {
  if (const std::string why = problem(choice); !why.empty())
    fail(str("step cost: ", to_string(choice), ": ", why), "use another choice, such as one of choices()");
  const double micro_batches = static_cast<double>(training_.rows_per_step / (choice.data * choice.micro_batch));
  const double tokens = static_cast<double>(choice.micro_batch * training_.tokens) / choice.context;
  StepCost cost;
  const double linear =
      2 * training_.matmul_params * tokens / hardware_.gemm_flops + training_.other_s_per_token * tokens / 3;
  double forward = 0, backward = 0;
  for (size_t kind = 0; kind < training_.attention.size(); ++kind) {
    const SchemeCost one = attention(choice, kind);
    const double count = static_cast<double>(training_.attention[kind].layers);
    forward += count * one.forward_s, backward += count * one.backward_s;
    cost.context_sent += micro_batches * count * (one.forward_sent + one.backward_sent);
    cost.context_bytes =
        std::max(cost.context_bytes, attention_memory(choice, kind));  // layers run one after the other
  }
  for (size_t kind = 0; kind < training_.recurrences.size(); ++kind) {
    const SchemeCost one = carry(choice, kind);
    const double count = micro_batches * static_cast<double>(training_.recurrences[kind].layers);
    const CarryShape shape = carry_shape(training_, choice, hardware_, kind);
    const double layers = choice.recomputes ? 1 : static_cast<double>(training_.recurrences[kind].layers);
    cost.context_bytes += layers * kept_states(shape, segments_of_ranks(training_, choice), choice.micro_batch);
    cost.carry_s += count * (one.forward_s + one.backward_s);
    cost.context_sent += count * (one.forward_sent + one.backward_sent);
  }
  for (size_t kind = 0; kind < training_.neighbours.size(); ++kind) {
    const SchemeCost one = neighbours(choice, kind);
    cost.others_s += micro_batches * (one.forward_s + one.backward_s);
    cost.context_sent += micro_batches * (one.forward_sent + one.backward_sent);
  }
  cost.linear_s = micro_batches * (choice.recomputes ? 4 : 3) * linear;
  cost.attention_s = micro_batches * (forward + backward);
  const int sharers = choice.zero > 0 ? choice.ranks() : 1;
  cost.optimizer_s = (training_.update_s >= 0 ? training_.update_s
                                              : kOptimizerBytes * training_.params / hardware_.memory_bytes_per_s) /
                     sharers;
  // An all-reduce, or half of one where each rank keeps its part; and where ranks update parts, they send each other the new weights.
  const double gradients = kGradientBytes * training_.params,
               whole = all_reduce_time(gradients, choice.ranks(), hardware_);
  const double sums = choice.zero == 2 ? 0.5 : 1.0, weights = choice.zero > 0 ? 0.5 : 0.0;
  cost.reduce_s = (sums + weights) * whole;
  cost.gradients_sent = 2 * (sums + weights) * gradients * (choice.ranks() - 1) / choice.ranks();
  // What the last backward does not hide, and the weights, which nothing does.
  const double hidden = hardware_.has_engines ? 2 * linear + backward : 0;
  cost.exposed_reduce_s = std::max(0.0, sums * whole - hidden) + weights * whole;
  cost.step_s =
      cost.linear_s + cost.attention_s + cost.carry_s + cost.others_s + cost.optimizer_s + cost.exposed_reduce_s;
  return cost;
}

std::string to_string(const FixedChoices& fixed) {
  std::string text;
  auto add = [&](const char* name, const auto& value) {
    if (value) text += str(text.empty() ? "" : ", ", name, " ", *value);
  };
  add("data", fixed.data), add("context", fixed.context), add("micro-batch", fixed.micro_batch);
  add("scheme", fixed.scheme), add("layout", fixed.layout);
  return text;
}

std::vector<MeshChoice> StepPlanner::choices(int ranks, const FixedChoices& fixed) const {
  std::vector<int64_t> micro_batches;
  for (int64_t rows = 1; rows <= training_.rows_per_step; rows *= 2) micro_batches.push_back(rows);
  if (fixed.micro_batch) micro_batches = {*fixed.micro_batch};
  // A balanced layout deals work that documents or windows make uneven; without them it is zigzag.
  std::vector<LayoutKind> layouts{LayoutKind::contiguous, LayoutKind::striped, LayoutKind::zigzag};
  const bool has_mask = !training_.documents.empty() ||
                        std::ranges::any_of(training_.attention, [](const AttentionLayers& a) { return a.window > 0; });
  if (has_mask) layouts.push_back(LayoutKind::balanced);
  if (fixed.layout) layouts = {*fixed.layout};
  std::vector<Scheme> schemes(all_schemes().begin(), all_schemes().end());
  if (fixed.scheme) schemes = {*fixed.scheme};
  std::vector<MeshChoice> choices;
  auto add = [&](const MeshChoice& choice) {
    if (problem(choice).empty()) choices.push_back(choice);
  };
  for (int context = 1; context <= std::min(ranks, kMostContext); ++context) {
    const int data = ranks / context;
    if (ranks % context != 0 || fixed.context.value_or(context) != context || fixed.data.value_or(data) != data)
      continue;
    for (int64_t micro_batch : micro_batches)
      for (bool recomputes : {false, true}) {
        const MeshChoice one{.data = data,
                             .context = context,
                             .micro_batch = micro_batch,
                             .recomputes = recomputes,
                             .layout = LayoutKind::contiguous,
                             .zero = ranks > 1 ? fixed.zero : 0};
        if (context == 1) add(one);  // nothing travels
        for (Scheme scheme : schemes)
          for (LayoutKind layout : layouts) {
            MeshChoice choice = one;
            choice.scheme = scheme, choice.layout = layout;
            if (context > 1) add(choice);
          }
      }
  }
  return choices;
}

}  // namespace weft::dist
