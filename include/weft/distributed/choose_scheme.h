// Which scheme of attention over ranks serves a model on a machine, and what it sends.
#pragma once

#include <cstdint>
#include <string>

#include "weft/distributed/context_attention.h"

namespace weft::dist {

// One call of attention: P ranks, n tokens of each.
struct ContextShape {
  int ranks = 1;
  int64_t batch = 1, tokens = 0;  // tokens: of a rank
  int64_t heads = 1, kv_heads = 1, key_width = 0, value_width = 0;
  DType dtype = kBF16;
  bool are_values_in_keys = false;  // they are the first channels of the keys: neither they nor their gradients travel
  bool has_documents = false;
  bool has_lse = true;                               // not under the sum normaliser
  int64_t query_bias_heads = 0, key_bias_heads = 0;  // 0: no bias
  DType bias_dtype = kF32;
};

// What the rank that sends most sends to others, and what of it leaves a node (0 where SchemeOptions::node is not set).
struct MessageBytes {
  int64_t forward = 0, backward = 0;
  int64_t forward_between_nodes = 0, backward_between_nodes = 0;
};
MessageBytes message_bytes(Scheme scheme, const ContextShape& shape, const SchemeOptions& options, const HopPlan& plan);
// Of every rank, where every rank has work with every other one.
MessageBytes message_bytes(Scheme scheme, const ContextShape& shape, const SchemeOptions& options = {});

// Whether `latent` is sent in place of `heads`, two forms of one call (MLA, absorbed and expanded): where that is fewer bytes, forward and
// backward together.
bool is_latent_sent(Scheme scheme, const SchemeOptions& options, const ContextShape& heads, const ContextShape& latent);

// "" or why a scheme cannot run with these options: the text of the error that a call would give.
std::string scheme_problem(Scheme scheme, int ranks, int64_t heads, const SchemeOptions& options);
// Options with which the scheme is what its name says, where none are given: usp and double_ring with the largest groups that fit into nodes
// of `ranks_per_node` ranks, none of them over two nodes. Where one node has all ranks (0: it does), the largest of fewer than all.
SchemeOptions default_options(Scheme scheme, int ranks, int64_t heads, int ranks_per_node = 0);

// What the choice depends on beside the shape.
struct ContextMachine {
  int ranks_per_node = 0;   // 0: all
  double device_bytes = 0;  // memory of a rank; 0: unknown, and no limit
};
struct ContextModel {
  bool is_windowed = false;     // every layer of attention has a window
  bool has_recurrence = false;  // some layer carries a state from token to token: layouts of few pieces
  int64_t block = 64;           // in which a balanced layout deals tokens
};

// For schemes under which the order of tokens decides who has how much work: balanced for documents, of which every rank has two blocks or more
// (of fewer, some ranks have hardly any work); else zigzag, or contiguous under windows.
struct LayoutChoice {
  LayoutKind layout = LayoutKind::contiguous;
  std::string reason = {};  // of documents whose layout is not balanced for want of blocks
};
LayoutChoice choose_layout(const ContextShape& shape, const ContextModel& model);

struct SchemeChoice {
  Scheme scheme = Scheme::ring;
  SchemeOptions options = {};
  LayoutKind layout = LayoutKind::contiguous;
  std::string reason = {};         // one sentence, with the numbers that decided
  std::string layout_reason = {};  // LayoutChoice::reason
};
// ulysses within a node while its buffers are small; all_gather for packed documents while the keys of all ranks are; across nodes usp, or a
// double ring where heads do not divide; else a ring. "Small" is 10 % of a rank's memory.
SchemeChoice choose_scheme(const ContextShape& shape, const ContextMachine& machine, const ContextModel& model);

}  // namespace weft::dist
