#include "weft/distributed/choose_scheme.h"

#include <algorithm>
#include <cmath>

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

}  // namespace

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
  const LayoutKind in_order = model.is_windowed ? LayoutKind::contiguous : LayoutKind::zigzag;
  const LayoutKind layout = shape.has_documents && !model.has_recurrence ? LayoutKind::balanced : in_order;
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
                    in_mib(keys * ranks), of_limit)};
  if (ranks > per_node) {
    if (const int group = largest_group(shape, per_node); group > 1)
      return {.scheme = Scheme::usp,
              .options = {.group = group},
              .layout = layout,
              .reason = str("usp: ", ranks, " ranks on nodes of ", per_node, "; heads are exchanged among ", group,
                            " ranks of a node, ", shape.kv_heads,
                            " key heads divide by them, and keys travel in a ring of ", ranks / group)};
    if (ranks % per_node == 0)
      return {.scheme = Scheme::double_ring,
              .options = {.node = per_node},
              .layout = layout,
              .reason = str("double_ring: ", ranks, " ranks on nodes of ", per_node, "; ", shape.kv_heads,
                            " key heads do not divide among ranks of a node")};
  }
  const std::string why_not = shape.kv_heads % ranks != 0
                                  ? str(ranks, " ranks do not divide ", shape.kv_heads, " key heads")
                              : ranks > per_node ? str(ranks, " ranks do not fill nodes of ", per_node)
                                                 : str("buffers of ulysses would be ", in_mib(buffers));
  return {
      .scheme = Scheme::ring,
      .layout = layout,
      .reason = str("ring: ", why_not,
                    model.is_windowed ? "; every layer has a window, so that a ring of neighbours ends early" : "")};
}

}  // namespace weft::dist
