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

// A token is wanted by a rank if one of the rank's stands at most so far behind or before it. One walk each way: it remembers at which step it last
// met each rank, and asks of all ranks only for tokens that are here.
ContextTokens::Wanted ContextTokens::wanted(int64_t before, int64_t after) const {
  const int64_t of_rank = batch_ * tokens_;
  Wanted wanted{.from_here = std::vector<std::vector<bool>>(of_ranks_.size()),
                .by_us = std::vector<bool>(order_.size())};
  for (std::vector<bool>& of : wanted.from_here) of.resize(static_cast<size_t>(of_rank));
  auto walk = [&](int64_t reach, bool is_forward) {
    std::vector<int64_t> met(of_ranks_.size(), -1);
    int64_t chain_began = 0;
    for (int64_t step = 0; step < std::ssize(order_); ++step) {
      const auto i = static_cast<size_t>(is_forward ? step : std::ssize(order_) - 1 - step);
      if (step > 0 && chains_[i] != chains_[is_forward ? i - 1 : i + 1]) chain_began = step;
      auto is_near = [&](size_t rank) { return met[rank] >= chain_began && step - met[rank] <= reach; };
      const auto owner = static_cast<size_t>(order_[i] / of_rank), mine = static_cast<size_t>(rank_);
      if (owner != mine) {
        if (is_near(mine)) wanted.by_us[i] = true;
      } else {
        for (size_t r = 0; r < of_ranks_.size(); ++r)
          if (r != mine && is_near(r)) wanted.from_here[r][static_cast<size_t>(order_[i] % of_rank)] = true;
      }
      met[owner] = step;
    }
  };
  walk(before, false);
  walk(after, true);
  return wanted;
}

const ContextTokens::Halo& ContextTokens::halo(int64_t before, int64_t after) const {
  const auto [entry, is_new] = halos_.try_emplace({before, after});
  Halo& halo = entry->second;
  if (!is_new) return halo;
  const int64_t count = batch_ * tokens_;
  halo.sends.resize(of_ranks_.size()), halo.receives.resize(of_ranks_.size());
  halo.places.resize(static_cast<size_t>(count));
  const Wanted wanted = this->wanted(before, after);
  // What comes stands by rank, and of a rank in the order of all; so does what goes to one.
  std::vector<std::pair<int32_t, int32_t>> coming;  // place in order(), number
  for (size_t i = 0; i < order_.size(); ++i) {
    if (wanted.by_us[i]) coming.emplace_back(static_cast<int32_t>(i), order_[i]);
    if (order_[i] / count != rank_) continue;
    const auto here = static_cast<int32_t>(order_[i] % count);
    for (size_t r = 0; r < of_ranks_.size(); ++r)
      if (wanted.from_here[r][static_cast<size_t>(here)]) halo.sends[r].push_back(here);
  }
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
