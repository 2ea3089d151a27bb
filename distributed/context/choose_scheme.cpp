#include "weft/distributed/choose_scheme.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "distributed/context/bytes.h"
#include "weft/core/error.h"

namespace weft::dist {

namespace {

constexpr double kSmall = 0.1;  // of a rank's memory

// The largest number of ranks that share a node, and among which key/value heads and the ranks themselves divide.
int largest_group(const ContextShape& shape, int per_node) {
  for (int group = std::min<int>(per_node, static_cast<int>(shape.kv_heads)); group > 1; --group)
    if (shape.kv_heads % group == 0 && per_node % group == 0 && shape.ranks % group == 0) return group;
  return 1;
}

std::string in_mib(double bytes) { return str(static_cast<int64_t>(bytes / (1 << 20) + 0.5), " MiB"); }

// The largest divisor of `ranks` up to `most` that divides `heads` too.
int largest_divisor(int ranks, int most, int64_t heads) {
  for (int size = std::min(ranks, most); size > 1; --size)
    if (ranks % size == 0 && heads % size == 0) return size;
  return 1;
}

std::string fix_of(Scheme scheme) {
  switch (scheme) {
    case Scheme::ulysses: return "use a number of ranks that divides the query heads, or the scheme ring or all_gather";
    case Scheme::usp:
      return "set SchemeOptions::group to ranks that exchange heads: they divide the ranks of the sequence and the "
             "query heads";
    case Scheme::double_ring:
      return "set SchemeOptions::node to the ranks of a node, which divide the ranks of the sequence";
    case Scheme::all_gather:
      return "set SchemeOptions::heads_at_once to the key/value heads of a chunk, or to 0 for all";
    case Scheme::ring:
    case Scheme::bidirectional_ring: break;
  }
  return "use at least one rank";
}

}  // namespace

std::string scheme_problem(Scheme scheme, int ranks, int64_t heads, const SchemeOptions& options) {
  auto problem = [&](const auto&... words) { return str(to_string(scheme), ": ", words...); };
  if (ranks < 1) return problem(ranks, " ranks");
  switch (scheme) {
    case Scheme::ring:
    case Scheme::bidirectional_ring: break;
    case Scheme::double_ring:
      if (options.node < 1 || ranks % options.node != 0) return problem(ranks, " ranks in nodes of ", options.node);
      break;
    case Scheme::all_gather:
      if (options.heads_at_once < 0) return problem(options.heads_at_once, " heads at once");
      break;
    case Scheme::ulysses:
      if (heads % ranks != 0) return problem(heads, " query heads for ", ranks, " ranks that divide heads");
      break;
    case Scheme::usp:
      if (options.group < 1 || ranks % options.group != 0) return problem(ranks, " ranks in groups of ", options.group);
      if (heads % options.group != 0)
        return problem(heads, " query heads for groups of ", options.group, " ranks that divide heads");
      break;
  }
  return "";
}

void check_scheme(Scheme scheme, int ranks, int64_t heads, const SchemeOptions& options) {
  const std::string problem = scheme_problem(scheme, ranks, heads, options);
  WEFT_CHECK(problem.empty(), problem, fix_of(scheme));
}

SchemeOptions default_options(Scheme scheme, int ranks, int64_t heads, int ranks_per_node) {
  const bool has_nodes = ranks_per_node > 0 && ranks_per_node < ranks;
  const int of = has_nodes ? std::gcd(ranks, ranks_per_node) : ranks, most = has_nodes ? of : ranks - 1;
  SchemeOptions options;
  if (scheme == Scheme::usp) options.group = largest_divisor(of, most, heads);
  if (scheme == Scheme::double_ring) options.node = largest_divisor(of, most, 0);
  return options;
}

LayoutChoice choose_layout(const ContextShape& shape, const ContextModel& model) {
  const LayoutKind in_order = model.is_windowed ? LayoutKind::contiguous : LayoutKind::zigzag;
  if (!shape.has_documents || model.has_recurrence) return {in_order};
  if (shape.tokens >= 2 * model.block) return {LayoutKind::balanced};
  return {in_order, str("documents in layout ", in_order, " and not balanced: ", shape.tokens,
                        " tokens of a rank are fewer than two blocks of ", model.block)};
}

SchemeChoice choose_scheme(const ContextShape& shape, const ContextMachine& machine, const ContextModel& model) {
  WEFT_CHECK(
      shape.ranks >= 1 && shape.kv_heads >= 1 && shape.heads % shape.kv_heads == 0,
      str("choose_scheme: ", shape.ranks, " ranks, ", shape.heads, " query heads, ", shape.kv_heads, " key heads"),
      "use at least one rank, and query heads that are a multiple of the key heads");
  const int ranks = shape.ranks,
            per_node = machine.ranks_per_node > 0 ? std::min(machine.ranks_per_node, ranks) : ranks;
  const double token_bytes =
      static_cast<double>(shape.batch * shape.tokens) * static_cast<double>(size_of(shape.dtype));
  const double keys = token_bytes * static_cast<double>(shape.kv_heads * (shape.key_width + shape.value_width));
  const double queries = token_bytes * static_cast<double>(shape.heads * (shape.key_width + shape.value_width));
  const double limit = machine.device_bytes > 0 ? kSmall * machine.device_bytes : INFINITY;
  const auto& [layout, why_layout] = choose_layout(shape, model);
  const std::string of_limit = machine.device_bytes > 0 ? str(", below a tenth of ", in_mib(machine.device_bytes)) : "";

  if (ranks == 1) return {.reason = "one rank has the whole sequence"};
  const double buffers = 2 * (keys + queries);  // what is sent and what is received
  if (ranks <= per_node && shape.kv_heads % ranks == 0 && buffers < limit)
    return {
        .scheme = Scheme::ulysses,
        .reason = str("ulysses: ", ranks, " ranks of one node divide ", shape.kv_heads,
                      " key heads, so that every rank has whole sequences; buffers of ", in_mib(buffers), of_limit)};
  if (shape.has_documents && keys * ranks < limit)
    return {.scheme = Scheme::all_gather,
            .layout = layout,
            .reason =
                str("all_gather: packed documents balance over whole calls and not hop by hop; keys of all ranks are ",
                    in_mib(keys * ranks), of_limit),
            .layout_reason = why_layout};
  if (ranks > per_node) {
    if (const int group = largest_group(shape, per_node); group > 1)
      return {.scheme = Scheme::usp,
              .options = {.group = group},
              .layout = layout,
              .reason = str("usp: ", ranks, " ranks on nodes of ", per_node, "; heads are exchanged among ", group,
                            " ranks of a node, ", shape.kv_heads,
                            " key heads divide by them, and keys travel in a ring of ", ranks / group),
              .layout_reason = why_layout};
    if (ranks % per_node == 0)
      return {.scheme = Scheme::double_ring,
              .options = {.node = per_node},
              .layout = layout,
              .reason = str("double_ring: ", ranks, " ranks on nodes of ", per_node, "; ", shape.kv_heads,
                            " key heads do not divide among ranks of a node"),
              .layout_reason = why_layout};
  }
  const std::string why_not = shape.kv_heads % ranks != 0
                                  ? str(ranks, " ranks do not divide ", shape.kv_heads, " key heads")
                              : ranks > per_node ? str(ranks, " ranks do not fill nodes of ", per_node)
                                                 : str("buffers of ulysses would be ", in_mib(buffers));
  return {.scheme = Scheme::ring,
          .layout = layout,
          .reason = str("ring: ", why_not,
                        model.is_windowed ? "; every layer has a window, so that a ring of neighbours ends early" : ""),
          .layout_reason = why_layout};
}

}  // namespace weft::dist
