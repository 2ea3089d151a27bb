#include "src/nn/mixing/context_tokens.h"

#include <algorithm>
#include <tuple>

#include "weft/autograd/functions.h"
#include "weft/core/dry_run.h"
#include "weft/core/error.h"
#include "weft/core/parallel.h"

namespace weft {

namespace {

using Shared = ContextTokens;

int32_t shared_by_all(const TokenTable& here, Watched watched) {
  return (here.has_padding() ? Shared::kDocuments : 0) | (watched.reports ? Shared::kReports : 0) |
         (watched.weights ? Shared::kWeights : 0);
}

// What both ranks have or neither does. The first of them that has it is named first.
void check_alike(int rank, int32_t mine, int other, int32_t others) {
  auto check = [&](int32_t what, const char* has, const char* has_not, const char* fix) {
    const bool is_mine = (mine & what) != 0;
    WEFT_CHECK(is_mine == ((others & what) != 0),
               str("Tokens: rank ", is_mine ? rank : other, has, ", rank ", is_mine ? other : rank, has_not), fix);
  };
  check(Shared::kDocuments, " has documents", " has none", "give documents on every rank or on none");
  check(Shared::kReports, " takes diagnostics", " does not",
        "give every rank the same TokensOptions::takes_diagnostics");
  check(Shared::kWeights, " has a probe of weights", " has none",
        "give every rank a probe that asks for weights, or none of them: all ranks exchange keys for it");
}

}  // namespace

ContextTokens::ContextTokens(const TokenTable& here, dist::Communicator& comm, Watched watched)
    : rank_(comm.rank()),
      threads_(num_threads()),
      batch_(here.batch()),
      tokens_(here.num_tokens()),
      has_documents_(here.has_padding()) {
  const auto count = static_cast<size_t>(batch_ * tokens_);
  std::vector<int32_t> mine;
  auto append = [&](std::span<const int32_t> part) { mine.insert(mine.end(), part.begin(), part.end()); };
  append(here.cpu_positions());
  append(here.cpu_document_positions());
  append(has_documents_ ? here.cpu_documents() : here.cpu_positions());
  mine.push_back(threads_);
  mine.push_back(shared_by_all(here, watched));
  const Tensor sent = Tensor::from(std::span<const int32_t>(mine), {1, static_cast<int64_t>(mine.size())});
  // A dry run copies nothing to a device and back; its communicator takes the CPU's memory.
  const Tensor all = comm.all_gather(is_dry_run() ? sent : to(sent, here.positions().device()).value());
  const std::vector<int32_t> numbers = all.to_vector<int32_t>();
  for (size_t r = 0; r < static_cast<size_t>(comm.size()); ++r) {
    const auto from = numbers.begin() + static_cast<std::ptrdiff_t>(r * mine.size());
    auto plane = [&](size_t which) {
      const auto begin = from + static_cast<std::ptrdiff_t>(which * count);
      return std::vector<int32_t>(begin, begin + static_cast<std::ptrdiff_t>(count));
    };
    check_alike(comm.rank(), mine.back(), static_cast<int>(r), from[static_cast<std::ptrdiff_t>(mine.size()) - 1]);
    threads_ = std::min(threads_, static_cast<int>(from[static_cast<std::ptrdiff_t>(mine.size()) - 2]));
    of_ranks_.push_back({plane(0), has_documents_ ? plane(2) : std::vector<int32_t>()});
    document_positions_.push_back(plane(1));
  }
  const int64_t of_row = ranks() * tokens_;
  const Runs runs(batch_, of_row, rank_by_rank(&dist::RankTokens::positions),
                  rank_by_rank(&dist::RankTokens::documents));
  order_ = runs.order();
  for (int32_t& at : order_) {
    const int64_t row = at / of_row, rank = at % of_row / tokens_, token = at % tokens_;
    at = static_cast<int32_t>((rank * batch_ + row) * tokens_ + token);
  }
  chains_ = runs.chains();
}

std::vector<int32_t> ContextTokens::rank_by_rank(std::vector<int32_t> dist::RankTokens::*member) const {
  std::vector<int32_t> rows;
  for (int64_t b = 0; b < batch_; ++b)
    for (const dist::RankTokens& of_rank : of_ranks_) {
      const std::vector<int32_t>& values = of_rank.*member;
      if (!values.empty()) rows.insert(rows.end(), values.begin() + b * tokens_, values.begin() + (b + 1) * tokens_);
    }
  return rows;
}

std::shared_ptr<const dist::HopPlan> ContextTokens::plan(const ops::AttentionMask& mask) const {
  std::shared_ptr<const dist::HopPlan>& known = plans_[{mask.is_causal, mask.window, mask.prefix}];
  if (!known)
    known = std::make_shared<dist::HopPlan>(dist::plan_hops(
        of_ranks_, batch_, {.window = mask.window, .is_causal = mask.is_causal, .prefix = mask.prefix}));
  return known;
}

const ContextTokens::Carries& ContextTokens::carries() const {
  if (carries_) return *carries_;
  struct Of {
    int rank;
    int32_t index;
    Run run;
  };
  std::vector<Of> all;
  Carries carries;
  for (int r = 0; r < ranks(); ++r) {
    const dist::RankTokens& of_rank = of_ranks_[static_cast<size_t>(r)];
    const Runs runs(batch_, tokens_, of_rank.positions, of_rank.documents);
    int32_t index = 0;
    for (const Run& run : runs.all()) all.push_back({r, index++, run});
    carries.most = std::max<int64_t>(carries.most, index);
    if (r == rank_) carries.mine.resize(static_cast<size_t>(index));
  }
  std::sort(all.begin(), all.end(), [](const Of& a, const Of& b) {
    auto key = [](const Of& x) { return std::tuple(x.run.row, x.run.document < 0, x.run.position, x.rank, x.index); };
    return key(a) < key(b);
  });
  int32_t segment = 0;
  for (size_t i = 0; i < all.size(); ++i) {
    const Run& run = all[i].run;
    const Run* before = i > 0 ? &all[i - 1].run : nullptr;
    const bool continues = before && before->row == run.row && before->document == run.document && run.document >= 0;
    segment += before && !continues ? 1 : 0;
    carries.segments.push_back(segment);
    carries.places.push_back(static_cast<int32_t>(all[i].rank * carries.most + all[i].index));
    if (all[i].rank == rank_) carries.mine[static_cast<size_t>(all[i].index)] = static_cast<int32_t>(i);
  }
  carries_ = std::make_unique<Carries>(std::move(carries));
  return *carries_;
}

// What `rank` needs: where in order() it is, and its number. A token is wanted if one of the rank's stands at most so far behind or before it.
std::vector<std::pair<int32_t, int32_t>> ContextTokens::wanted(int rank, int64_t before, int64_t after) const {
  const int64_t of_rank = batch_ * tokens_;
  std::vector<bool> is_wanted(order_.size());
  auto walk = [&](int64_t reach, bool is_forward) {
    int64_t left = 0;
    for (size_t step = 0; step < order_.size(); ++step) {
      const size_t i = is_forward ? step : order_.size() - 1 - step;
      const bool continues = step > 0 && chains_[i] == chains_[is_forward ? i - 1 : i + 1];
      if (!continues) left = 0;
      if (order_[i] / of_rank == rank) left = reach;
      else if (left-- > 0) is_wanted[i] = true;
    }
  };
  walk(before, false);
  walk(after, true);
  std::vector<std::pair<int32_t, int32_t>> tokens;
  for (size_t i = 0; i < order_.size(); ++i)
    if (is_wanted[i]) tokens.emplace_back(static_cast<int32_t>(i), order_[i]);
  return tokens;
}

const ContextTokens::Halo& ContextTokens::halo(int64_t before, int64_t after) const {
  const auto [entry, is_new] = halos_.try_emplace({before, after});
  Halo& halo = entry->second;
  if (!is_new) return halo;
  const int64_t count = batch_ * tokens_;
  halo.sends.resize(of_ranks_.size()), halo.receives.resize(of_ranks_.size());
  halo.places.resize(static_cast<size_t>(count));
  for (int r = 0; r < ranks(); ++r) {
    if (r == rank_) continue;
    for (const auto& [place, number] : wanted(r, before, after))
      if (number / count == rank_) halo.sends[static_cast<size_t>(r)].push_back(static_cast<int32_t>(number % count));
  }
  // What comes stands by rank, and of a rank in the order of all.
  std::vector<std::pair<int32_t, int32_t>> coming = wanted(rank_, before, after);
  std::stable_sort(coming.begin(), coming.end(),
                   [&](const auto& a, const auto& b) { return a.second / count < b.second / count; });
  std::vector<std::pair<int32_t, int32_t>> all;  // place in order(), index here
  for (size_t i = 0; i < coming.size(); ++i) {
    ++halo.receives[static_cast<size_t>(coming[i].second / count)];
    all.emplace_back(coming[i].first, static_cast<int32_t>(count + static_cast<int64_t>(i)));
  }
  for (size_t i = 0; i < order_.size(); ++i)
    if (order_[i] / count == rank_) all.emplace_back(static_cast<int32_t>(i), static_cast<int32_t>(order_[i] % count));
  std::sort(all.begin(), all.end());
  int32_t chain = 0;
  for (size_t i = 0; i < all.size(); ++i) {
    const auto [place, index] = all[i];
    const auto at = static_cast<size_t>(place);
    chain += i > 0 && (place != all[i - 1].first + 1 || chains_[at] != chains_[at - 1]) ? 1 : 0;
    halo.order.push_back(index);
    halo.chains.push_back(chain);
    if (index < count) halo.places[static_cast<size_t>(index)] = static_cast<int32_t>(i);
  }
  return halo;
}

}  // namespace weft
