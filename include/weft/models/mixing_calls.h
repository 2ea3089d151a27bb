// What the layers of a model ask of tokens that may be on other ranks. It is found by one forward without memory (weft/core/dry_run.h), so it
// holds for every mixer, also for those of a program of its own.
#pragma once

#include <string>
#include <vector>

#include "weft/distributed/choose_scheme.h"
#include "weft/distributed/context_recurrence.h"
#include "weft/models/language_model.h"

namespace weft {

// Calls of attention of one kind.
struct AttentionCall {
  int64_t heads = 1, kv_heads = 1, key_width = 0, value_width = 0;
  int64_t window = 0;               // 0: all earlier tokens
  bool has_plan = true;             // a causal mask or a window: a plan says who sees whom
  bool are_values_in_keys = false;  // their first channels
  bool is_gathered = false;         // keys for any number of queries: no scheme moves them
  std::string where = {};           // module path of the first such call

  bool is_like(const AttentionCall& other) const;  // but for `where`
};

// Calls of recurrences of one kind; an element-wise one has a head for each channel.
struct RecurrenceCall {
  int64_t key_heads = 1, heads = 1, key_width = 1, value_width = 1;
  bool is_delta = false, are_of_values = false;  // the side of the decay
  bool is_elementwise = false;
  int64_t count = 1;  // of one forward

  bool is_like(const RecurrenceCall& other) const;  // but for `count`
  // Over ranks, whose states are of `dtype`.
  dist::CarryShape shape(const dist::SegmentCounts& segments, int ranks, DType dtype) const;
};

// Calls for neighbouring tokens of one kind: convolutions and shifts.
struct NeighbourCall {
  int64_t tokens = 0;   // that a token looks at, before and behind it
  int64_t numbers = 1;  // of a token
  DType dtype = kF32;
  int64_t count = 1;  // of one forward
};

struct MixingCalls {
  std::vector<AttentionCall> attention = {};     // each kind once
  std::vector<RecurrenceCall> recurrences = {};  // each kind once
  std::vector<NeighbourCall> neighbours = {};    // each kind once
  bool has_running_sums = false;                 // a state that goes from token to token
  bool has_neighbours = false;                   // convolutions and shifts
  bool gathers_tokens = false;                   // every rank holds a copy of every token

  int64_t window() const;  // the widest of attention; 0: some call sees all earlier tokens, or there is none
  // "" or "model.layers.0.mixer: " and why the scheme cannot run there, with options that fit the nodes (0: one has all ranks).
  std::string where_not(dist::Scheme scheme, int ranks, int ranks_per_node = 0) const;
};
// `tokens`: of a rank and row.
MixingCalls mixing_calls(const LanguageModelOptions& options, DType compute, int64_t tokens);

}  // namespace weft
