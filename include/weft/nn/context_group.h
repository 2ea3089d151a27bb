// Ranks that share the rows of a micro-batch: each has some tokens of every row, in any layout. See TokensOptions::context.
#pragma once

#include <optional>

#include "weft/comm/communicator.h"
#include "weft/distributed/context_attention.h"
#include "weft/distributed/context_recurrence.h"

namespace weft {

struct ContextGroup {
  dist::Communicator* tokens = nullptr;  // the ranks that have tokens of these rows
  dist::Communicator* batch =
      nullptr;  // those, and the ranks that have the other rows of the micro-batch; null: the same
  dist::Scheme scheme = dist::Scheme::ring;
  dist::SchemeOptions options = {};  // a group or node of 0 is the largest that fits a call: dist::default_options()

  std::optional<dist::Carry> carry = {};  // of recurrences; chosen by bytes if it is not given: dist::choose_carry()

  // For a call with so many query heads.
  dist::SchemeOptions options_for(int64_t heads) const;

  dist::Communicator& of_batch() const { return batch ? *batch : *tokens; }
};

}  // namespace weft
