// Where the tokens of all ranks stand: one exchange of integers per forward, after which every rank plans without asking. Tokens are numbered
// rank by rank: token i of the B T of rank r is number r B T + i. B batch rows, T tokens of a rank and row, P ranks.
#pragma once

#include <map>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include "src/nn/mixing/mixing.h"
#include "weft/comm/communicator.h"
#include "weft/comm/layout.h"
#include "weft/distributed/context_attention.h"
#include "weft/nn/token_table.h"

namespace weft {

class ContextTokens {
 public:
  // Bits of the last number that ranks tell each other: what all of them have, or none.
  static constexpr int32_t kDocuments = 1, kReports = 2, kWeights = 4;

  // Every rank calls it. Error where not all of them have documents, or are watched alike.
  ContextTokens(const TokenTable& here, dist::Communicator& comm, Watched watched = {});

  int ranks() const { return static_cast<int>(of_ranks_.size()); }
  int64_t batch() const { return batch_; }
  int64_t tokens() const { return tokens_; }  // T
  int threads() const { return threads_; }    // the fewest of any rank
  bool has_documents() const { return has_documents_; }
  const std::vector<dist::RankTokens>& of_ranks() const { return of_ranks_; }
  const std::vector<std::vector<int32_t>>& document_positions() const { return document_positions_; }  // by rank
  // Positions or documents [B, P T]: in each row those of rank 0 first. Empty where there are none.
  std::vector<int32_t> rank_by_rank(std::vector<int32_t> dist::RankTokens::*member) const;

  // The B P T tokens by row and position, padding last in its row.
  const std::vector<int32_t>& order() const { return order_; }
  // Of those, in that order, a number that changes where two tokens do not stand one after the other in one document.
  const std::vector<int32_t>& chains() const { return chains_; }

  std::shared_ptr<const dist::HopPlan> plan(const ops::AttentionMask& mask) const;

  // Running sums over the ranks' runs. Each rank has a sum for each of its runs, and `most` places for them.
  struct Carries {
    int64_t most = 0;
    std::vector<int32_t> places;    // of all runs of all ranks by row and position: rank * most + run
    std::vector<int32_t> segments;  // of those: changes where a document ends
    std::vector<int32_t> mine;      // of the runs here, which of those they are
  };
  const Carries& carries() const;

  // The tokens here with the `before` tokens in front of each of them and the `after` behind it, by row and position.
  struct Halo {
    std::vector<std::vector<int32_t>> sends;  // by rank: which of the B T here it wants
    std::vector<int64_t> receives;            // by rank: how many come from it
    std::vector<int32_t> order;               // of the B T here, and behind them what came: by row and position
    std::vector<int32_t> chains;              // of those in that order
    std::vector<int32_t> places;              // of each of the B T here: which of those it is
  };
  const Halo& halo(int64_t before, int64_t after) const;

 private:
  struct Wanted {
    std::vector<std::vector<bool>> from_here;  // by rank: of the B T here
    std::vector<bool> by_us;                   // of the B P T in order()
  };
  Wanted wanted(int64_t before, int64_t after) const;

  int rank_, threads_;
  int64_t batch_, tokens_;
  bool has_documents_;
  std::vector<dist::RankTokens> of_ranks_;
  std::vector<std::vector<int32_t>> document_positions_;
  std::vector<int32_t> order_, chains_;
  // Made when first asked for.
  mutable std::map<std::tuple<bool, int64_t, int64_t>, std::shared_ptr<const dist::HopPlan>> plans_;
  mutable std::unique_ptr<Carries> carries_;
  mutable std::map<std::pair<int64_t, int64_t>, Halo> halos_;
};

}  // namespace weft
