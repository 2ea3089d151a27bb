// What the layers of a model ask of tokens that may be on other ranks. It is found by one forward without memory (weft/core/dry_run.h), so it
// holds for every mixer, also for those of a program of its own.
#pragma once

#include <string>
#include <vector>

#include "weft/distributed/choose_scheme.h"
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

struct MixingCalls {
  std::vector<AttentionCall> attention = {};  // each kind once
  bool has_running_sums = false;              // a state that goes from token to token
  bool has_neighbours = false;                // convolutions and shifts
  bool gathers_tokens = false;                // every rank holds a copy of every token

  int64_t window() const;    // the widest of attention; 0: some call sees all earlier tokens, or there is none
  std::string where_not(dist::Scheme scheme, int ranks) const;  // "" or "model.layers.0.mixer: " and why the scheme cannot run there
};
// `tokens`: of a rank and row.
MixingCalls mixing_calls(const LanguageModelOptions& options, DType compute, int64_t tokens);

}  // namespace weft
