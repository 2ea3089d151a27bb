// Ranks that share the rows of a micro-batch: each has some tokens of every row, in any layout. See TokensOptions::context. And ranks that
// decode together.
#pragma once

#include <memory>
#include <optional>

#include "weft/comm/communicator.h"
#include "weft/distributed/context_attention.h"
#include "weft/distributed/context_recurrence.h"
#include "weft/nn/token_data.h"

namespace weft {

struct ContextGroup {
  dist::Communicator* tokens = nullptr;  // the ranks that have tokens of these rows
  dist::Communicator* batch =
      nullptr;  // those, and the ranks that have the other rows of the micro-batch; null: the same
  dist::Scheme scheme = dist::Scheme::ring;
  dist::SchemeOptions options = {};  // a group or node of 0 is the largest that fits a call: dist::default_options()
  int ranks_per_node = 0;            // neighbours in `tokens`, for that; 0: all

  std::optional<dist::Carry> carry = {};  // of recurrences; chosen by bytes if it is not given: dist::choose_carry()

  // For a call with so many query heads.
  dist::SchemeOptions options_for(int64_t heads) const;

  dist::Communicator& of_batch() const { return batch ? *batch : *tokens; }
};

// The cache of one of the ranks that decode together: all of them make the same calls with the same tokens, and get the same bits. Of attention
// without a window, where one call follows the keys, each keeps the keys of every P-th token and attends to those, and the results of all are
// merged. What does not grow with the length is on every rank, and so are values that are gathered and keys that serve several calls
// (Tokens::keys()). `ranks` outlives the cache; TokensOptions::context stays null.
std::shared_ptr<Cache> make_cache(int64_t batch, int64_t max_tokens, dist::Communicator& ranks);

}  // namespace weft
