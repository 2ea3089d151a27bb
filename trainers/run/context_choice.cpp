#include "trainers/run/context_choice.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>

#include "trainers/config/check.h"
#include "trainers/config/enum_values.h"
#include "trainers/run/rank_places.h"
#include "weft/core/error.h"
#include "weft/core/memory.h"
#include "weft/core/parallel.h"
#include "weft/models/mixing_calls.h"
#include "weft/ops/elementwise.h"

namespace weft::train {

namespace {

constexpr int64_t kAnyVocab = 97;  // attention does not depend on it

// Schemes that ask for less of the heads come later: the last one that some call needs serves all calls.
int demands_left_out(dist::Scheme scheme) {
  switch (scheme) {
    case dist::Scheme::ulysses: return 0;
    case dist::Scheme::all_gather: return 1;
    case dist::Scheme::usp: return 2;
    case dist::Scheme::double_ring: return 3;
    case dist::Scheme::bidirectional_ring:
    case dist::Scheme::ring: break;
  }
  return 4;
}

// Before the data are read.
bool may_have_documents(const config::Data& data) {
  if (!data.document_mask()) return false;
  return data.has_end_of_text() || data.tokenizer().has_gpt2() || data.tokenizer().has_bpe() ||
         std::ranges::any_of(data.train(), [](const config::Source& source) {
           return source.path().ends_with(".bin") || source.path().ends_with(".jsonl");
         });
}

dist::ContextModel model_of(const ParallelOptions& p, const MixingCalls& calls) {
  return {.is_windowed = calls.window() > 0,
          .has_recurrence = calls.has_running_sums || calls.has_neighbours,
          .block = p.block};
}

dist::SchemeChoice chosen(const config::Loaded& config, const ParallelOptions& parallel, const MixingCalls& calls,
                          int64_t tokens, const RankMachine& machine) {
  const config::Experiment& e = config.experiment;
  double bytes = machine.device_bytes;
  if (const int64_t limit = memory_limit(e); limit < INT64_MAX)
    bytes = std::min(bytes > 0 ? bytes : INFINITY, static_cast<double>(limit));
  std::optional<dist::SchemeChoice> best;
  auto consider = [&](const AttentionCall& call) {
    const dist::SchemeChoice choice = dist::choose_scheme(
        {.ranks = parallel.context,
         .batch = e.train().micro_batch(),
         .tokens = tokens,
         .heads = call.heads,
         .kv_heads = call.kv_heads,
         .key_width = call.key_width,
         .value_width = call.value_width,
         .dtype = compute_dtype(e),
         .are_values_in_keys = call.are_values_in_keys,
         .has_documents = may_have_documents(e.data())},
        {.ranks_per_node = machine.ranks_per_node, .device_bytes = bytes}, model_of(parallel, calls));
    if (!best || demands_left_out(choice.scheme) > demands_left_out(best->scheme)) best = choice;
  };
  if (calls.attention.empty())
    return {.layout = dist::LayoutKind::contiguous, .reason = "no layer attends, so tokens stay in their order"};
  for (const AttentionCall& call : calls.attention)
    if (!call.is_gathered) consider(call);
  if (!best) consider({.key_width = 1, .value_width = 1});  // no scheme moves the keys, but queries have a layout
  if (best->scheme == dist::Scheme::usp)                    // one group for the heads of all layers
    for (const AttentionCall& call : calls.attention)
      if (!call.is_gathered) best->options.group = std::gcd(best->options.group, static_cast<int>(call.heads));
  return *best;
}

// For a scheme that the config names, under which the order of tokens decides who has how much work.
dist::LayoutChoice balancing_layout(const config::Loaded& config, const ParallelOptions& p, const MixingCalls& calls,
                                    int64_t tokens) {
  if (calls.attention.empty()) return {};
  return dist::choose_layout({.tokens = tokens, .has_documents = may_have_documents(config.experiment.data())},
                             model_of(p, calls));
}

// Of a scheme that the config names, whose groups of ranks are chosen by the machine.
std::string of_nodes(const ParallelOptions& p, int ranks_per_node) {
  const bool has_groups = p.scheme == dist::Scheme::usp || p.scheme == dist::Scheme::double_ring;
  if (!has_groups || ranks_per_node == 0 || ranks_per_node >= p.context) return "";
  return str(to_string(*p.scheme), ": ", p.context, " ranks on nodes of ", ranks_per_node);
}

bool has_blocks(const ParallelOptions& p) {
  return p.layout == dist::LayoutKind::striped || p.layout == dist::LayoutKind::balanced;
}

// A scheme that the config names must divide the heads of every call.
void check_scheme(const config::Loaded& config, const ParallelOptions& p, const MixingCalls& calls,
                  int ranks_per_node) {
  if (!p.scheme) return;
  if (const std::string problem = calls.where_not(*p.scheme, p.context, ranks_per_node); !problem.empty())
    config::refuse(config, "parallel.scheme", str("cannot run in ", problem, "."),
                   "Use another parallel.context, or parallel.scheme=auto, which finds one that can.");
}

// Every block is a segment of its own, or nearly so, and what recurrences send grows with the segments.
void check_stripes(const config::Loaded& config, const ParallelOptions& p, const MixingCalls& calls) {
  if (!has_blocks(p)) return;
  for (const RecurrenceCall& call : calls.recurrences) {
    const int64_t least = dist::shortest_stripe({.value_width = call.value_width}, p.context);
    if (p.block < least)
      config::refuse(
          config, "parallel.layout",
          str("is ", to_string(*p.layout), " with blocks of ", p.block, " tokens, and the model has recurrences: over ",
              p.context, " ranks they need blocks of at least ", least, "."),
          str("Use parallel.layout=zigzag, or parallel.block=", least, "."));
  }
}

// As it will be chosen for rows of one document; documents may make chains of segments shorter.
std::vector<std::string> carries_of(const config::Loaded& config, const ContextChoice& choice,
                                    const MixingCalls& calls) {
  const dist::Layout layout =
      data::layout_of_row(choice.spread_options(false), config.experiment.model().context(), {});
  const dist::SegmentCounts segments = counts_of(layout, config.experiment.train().micro_batch());
  const DType states = compute_dtype(config.experiment) == kF64 ? kF64 : kF32;
  std::vector<std::string> lines;
  for (const RecurrenceCall& call : calls.recurrences) {
    dist::CarryShape shape = call.shape(segments, choice.parallel.context, states);
    shape.is_on_gpu = default_device().is_cuda(), shape.threads = num_threads();
    const std::string what = call.is_elementwise ? str(call.heads, " channels")
                                                 : str(call.heads, " heads of ", call.key_width, " x ",
                                                       call.value_width, call.is_delta ? ", delta rule" : "");
    lines.push_back(str("recurrences of ", what, ": ", choose_carry(shape).reason));
  }
  return lines;
}

// "context: 2 ranks, scheme ulysses (auto), layout striped (config); ulysses: ..."
std::string in_words(const ParallelOptions& given, const ContextChoice& choice) {
  auto by = [](bool is_given) { return is_given ? " (config)" : " (auto)"; };
  const ParallelOptions& p = choice.parallel;
  return str("context: ", p.context, " ranks, scheme ", to_string(*p.scheme), by(given.scheme.has_value()), ", layout ",
             to_string(*p.layout), by(given.layout.has_value()), choice.reason.empty() ? "" : "; " + choice.reason);
}

}  // namespace

data::SpreadOptions ContextChoice::spread_options(bool keeps_documents_apart) const {
  return {.layout = *parallel.layout,
          .ranks = parallel.context,
          .block = parallel.block,
          .window = window,
          .keeps_documents_apart = keeps_documents_apart};
}

RankMachine rank_machine(dist::Communicator& world) {
  const int here = count_ranks_at(world, host_name());
  auto bytes = static_cast<double>(limit_bytes(default_device()));
  if (default_device().is_cpu()) bytes /= here;
  Tensor least = ops::to(Tensor::from<double>({bytes, static_cast<double>(here)}, {2}), default_device());
  world.all_reduce(least, dist::Reduce::min);
  const std::vector<double> of_all = least.to_vector<double>();
  return {.ranks_per_node = static_cast<int>(of_all[1]), .device_bytes = of_all[0]};
}

static MixingCalls calls_of_rank(const config::Loaded& config, const ParallelOptions& p) {
  const int64_t tokens = (config.experiment.model().context() + p.context - 1) / p.context;
  return mixing_calls(model_options(config, kAnyVocab), compute_dtype(config.experiment), tokens);
}

void check_context(const config::Loaded& config) {
  const ParallelOptions p = parallel_options(config.experiment);
  if (p.context == 1 || (!p.scheme && !has_blocks(p))) return;  // the rest is found to suit the model
  const MixingCalls calls = calls_of_rank(config, p);
  check_scheme(config, p, calls, 0);
  check_stripes(config, p, calls);
}

ContextChoice choose_context(const config::Loaded& config, const RankMachine& machine) {
  ContextChoice choice{.parallel = parallel_options(config.experiment)};
  ParallelOptions& p = choice.parallel;
  if (p.context == 1) return as_said(p);
  const int64_t tokens = (config.experiment.model().context() + p.context - 1) / p.context;
  const MixingCalls calls = calls_of_rank(config, p);
  const ParallelOptions given = p;
  check_scheme(config, p, calls, machine.ranks_per_node);
  const dist::SchemeChoice found = chosen(config, p, calls, tokens, machine);
  if (!given.scheme) p.scheme = found.scheme, choice.options = found.options;
  const bool is_layout_of_choice = !given.scheme || *given.scheme == dist::Scheme::ulysses;
  choice.ranks_per_node = machine.ranks_per_node;
  choice.reason = given.scheme ? of_nodes(given, machine.ranks_per_node) : found.reason;
  if (!given.layout) {
    const dist::LayoutChoice layout = is_layout_of_choice ? dist::LayoutChoice{found.layout, found.layout_reason}
                                                          : balancing_layout(config, given, calls, tokens);
    p.layout = layout.layout;
    choice.reason += (choice.reason.empty() || layout.reason.empty() ? "" : "; ") + layout.reason;
  }
  check_stripes(config, p, calls);
  choice.window = calls.window();
  choice.carries = carries_of(config, choice, calls);
  for (const AttentionCall& call : calls.attention) {
    const int64_t window = call.has_plan ? call.window : 0;
    if (std::ranges::find(choice.windows, window) == choice.windows.end()) choice.windows.push_back(window);
  }
  choice.reason = in_words(given, choice);
  return choice;
}

ContextChoice as_said(const ParallelOptions& parallel) {
  ContextChoice choice{.parallel = parallel};
  choice.parallel.scheme = parallel.scheme.value_or(dist::Scheme::ring);
  choice.parallel.layout = parallel.layout.value_or(dist::LayoutKind::zigzag);
  return choice;
}

config::Loaded with_choice(const config::Loaded& config, const ContextChoice& choice) {
  config::Loaded of = config;
  if (choice.parallel.context == 1) return of;
  config::Parallel& parallel = *of.experiment.mutable_parallel();
  parallel.set_scheme(schema_value(*choice.parallel.scheme));
  parallel.set_layout(schema_value(*choice.parallel.layout));
  return of;
}

// What all tiles hold over the pairs in them: HopPlan has tiles over the mean of pairs, and equal work is 1 only beside this.
static double tiles_over_pairs(const dist::HopPlan& plan) {
  const auto sum = [](const std::vector<int64_t>& work) {
    return std::accumulate(work.begin(), work.end(), int64_t{0});
  };
  return static_cast<double>(std::max<int64_t>(1, sum(plan.tiles)) * plan.tile * plan.tile) /
         static_cast<double>(std::max<int64_t>(1, sum(plan.pairs)));
}

std::vector<std::string> context_lines(const ContextChoice& choice, int64_t tokens,
                                       std::span<const int32_t> documents) {
  if (choice.reason.empty()) return {};
  std::vector<std::string> lines{choice.reason};
  lines.insert(lines.end(), choice.carries.begin(), choice.carries.end());
  if (choice.parallel.scheme == dist::Scheme::ulysses) {
    lines.push_back("balance: each rank has all tokens during attention, of its heads: equal work under any mask");
    return lines;
  }
  const bool has_groups = choice.parallel.scheme == dist::Scheme::usp;
  const dist::Layout layout = data::layout_of_row(choice.spread_options(!documents.empty()), tokens, documents);
  for (const int64_t window : choice.windows) {
    const dist::HopPlan plan = plan_hops(layout, {.window = window, .documents = {documents.begin(), documents.end()}});
    const double of_all = tiles_over_pairs(plan);
    lines.push_back(
        fmt::format("balance, {}{}{}: rank totals {:.3f} in pairs and {:.3f} in tiles, hop by hop {:.3f} and {:.3f} (1 "
                    "is equal work), "
                    "{} of {} hops",
                    window > 0 ? fmt::format("window {}", window) : "causal",
                    documents.empty() ? "" : " within the documents of the first sequence",
                    has_groups ? ", before heads are exchanged" : "", plan.rank_pairs(), plan.rank_tiles() / of_all,
                    plan.lockstep_pairs(), plan.lockstep_tiles() / of_all, plan.steps, plan.ranks));
  }
  return lines;
}

}  // namespace weft::train
