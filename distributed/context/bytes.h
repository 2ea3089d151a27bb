// What a scheme makes of its options, and the sizes of its messages.
#pragma once

#include "distributed/context/call.h"
#include "weft/distributed/choose_scheme.h"

namespace weft::dist {

void check_scheme(Scheme scheme, int ranks, int64_t heads, const SchemeOptions& options);
// Ranks that exchange heads.
int group_size(Scheme scheme, int ranks, const SchemeOptions& options);
int64_t heads_at_once(Scheme scheme, const SchemeOptions& options, int64_t kv_heads);  // of all_gather, else all

// Bytes of one hop: what travels, and the sums of its gradients.
struct PacketBytes {
  int64_t data = 0, sums = 0;
};
PacketBytes key_bytes(const ContextShape& shape);
PacketBytes query_bytes(const ContextShape& shape);  // of a backward
bool do_queries_travel(Scheme scheme, Travels wanted, const ContextShape& shape);
ContextShape shape_of(const Call& call);

}  // namespace weft::dist
