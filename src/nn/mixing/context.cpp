#include "src/nn/mixing/context.h"

#include <algorithm>

#include "src/nn/mixing/any_order.h"
#include "src/nn/mixing/chosen_keys.h"
#include "weft/autograd/ranks.h"
#include "weft/core/dry_run.h"
#include "weft/core/error.h"
#include "weft/distributed/choose_scheme.h"

namespace weft {

namespace {

Tensor on_device_of(const Tensor& like, const std::vector<int32_t>& numbers, const Shape& shape) {
  return to(Tensor::from(std::span<const int32_t>(numbers), shape), like.device()).value();
}

Tensor index_on(const Tensor& like, const std::vector<int32_t>& numbers) {
  return on_device_of(like, numbers, {static_cast<int64_t>(numbers.size())});
}

// [n, ...] -> [n, channels]
Var rows_of(const Var& x, int dims) {
  int64_t n = 1;
  for (int i = 0; i < dims; ++i) n *= x.size(i);
  return reshape(x, {n, n > 0 ? x.value().num_elements() / n : 1});
}

// Of all ranks, [B, n, ...] -> [B, P n, ...]: those of rank 0 first.
Var of_all_ranks(dist::Communicator& comm, const Var& x) {
  Var all = all_gather(comm, unsqueeze(x, 0));
  Shape shape = x.shape();
  shape[1] *= comm.size();
  return reshape(transpose(all, 0, 1), shape);
}

}  // namespace

dist::SchemeOptions ContextGroup::options_for(int64_t heads) const {
  dist::SchemeOptions of = options;
  const dist::SchemeOptions fitting = dist::default_options(scheme, tokens->size(), heads, ranks_per_node);
  if (of.group == 0) of.group = fitting.group;
  if (of.node == 0) of.node = fitting.node;
  return of;
}

const ContextTokens& Context::tokens() {
  if (!tokens_) tokens_.emplace(table_, *group_.tokens, watched_);
  return *tokens_;
}

KeySet Context::keys(const Var& k_BTGK, const Var& v_BTGV, const KeyOptions& options) {
  KeySet mine = Local::keys(k_BTGK, v_BTGV, options);
  if (is_alone()) return mine;
  if (options.serves_one_call) {
    mine.is_of_this_rank = true;
    return mine;
  }
  KeySet all = gathered_keys(mine);
  for (const Var& x : {all.k, all.v, all.bias})
    if (x.defined()) unsettled_.push_back(x);
  return all;
}

KeySet Context::gathered_keys(const KeySet& mine) {
  dist::Communicator& comm = *group_.tokens;
  auto of_all = [&](const Var& x) { return x.defined() ? of_all_ranks(comm, x) : x; };
  return {of_all(mine.k), of_all(mine.v), of_all(mine.bias), rank_by_rank(), mine.window};
}

Mixing::KeysOfRows Context::keys_of_rows(const KeySet& keys) {
  if (is_alone()) return Local::keys_of_rows(keys);
  KeySet mine = keys;
  mine.v = {};
  KeysOfRows all{keys.is_of_this_rank ? gathered_keys(mine) : mine, {}};
  const std::vector<int32_t>& order = tokens().order();
  const int64_t T = table_.num_tokens(), of_rank = table_.batch() * T, of_row = T * group_.tokens->size();
  all.places.resize(order.size());
  for (size_t i = 0; i < order.size(); ++i) {
    const int64_t rank = order[i] / of_rank, row = order[i] % of_rank / T, token = order[i] % T;
    all.places[static_cast<size_t>(row * of_row + rank * T + token)] =
        static_cast<int32_t>(static_cast<int64_t>(i) % of_row);
  }
  return all;
}

// Ranks have different numbers of chosen keys: first how many there are at most, then where they stand, then the keys.
KeySet Context::with_those_of_ranks(const KeySet& mine) {
  dist::Communicator& comm = *group_.tokens;
  const Device device = mine.k.device();
  const auto B = mine.k.size(0), most_here = mine.k.size(1);
  const int32_t count = static_cast<int32_t>(most_here);
  const Tensor count_here = Tensor::from(std::span(&count, 1), {1});
  const std::vector<int32_t> counts =
      comm.all_gather(is_dry_run() ? count_here : to(count_here, device).value()).to_vector<int32_t>();
  const int64_t most = *std::ranges::max_element(counts);
  auto flat = [](const Var& x) { return reshape(x, {x.size(0) * x.size(1), x.size(2), x.size(3)}); };
  const bool have_documents = mine.tokens.documents.defined();
  KeySet sent =
      most == most_here ? mine : chosen_keys(flat(mine.k), flat(mine.v), chosen_rows(mine), have_documents, most);
  auto numbers = [&](const Tensor& of_these) {  // [B, P most], those of rank 0 first in each row
    if (!of_these.defined()) return Tensor();
    const std::vector<int32_t> all = comm.all_gather(of_these).to_vector<int32_t>();
    std::vector<int32_t> rows;
    for (int64_t b = 0; b < B; ++b)
      for (int64_t r = 0; r < comm.size(); ++r) {
        const auto begin = all.begin() + (r * B + b) * most;
        rows.insert(rows.end(), begin, begin + most);
      }
    return on_device_of(of_these, rows, {B, comm.size() * most});
  };
  KeySet all{.k = of_all_ranks(comm, sent.k),
             .v = of_all_ranks(comm, sent.v),
             .bias = {},
             .tokens = {numbers(sent.tokens.positions), numbers(sent.tokens.documents)}};
  unsettled_.push_back(all.k), unsettled_.push_back(all.v);
  return all;
}

// [B, P T]: as gathered keys stand.
const ops::AttentionTokens& Context::rank_by_rank() {
  if (rank_by_rank_) return *rank_by_rank_;
  const ContextTokens& all = tokens();
  const Shape shape{all.batch(), all.ranks() * all.tokens()};
  auto of_all = [&](auto member) { return on_device_of(table_.positions(), all.rank_by_rank(member), shape); };
  return rank_by_rank_.emplace(of_all(&dist::RankTokens::positions),
                               all.has_documents() ? of_all(&dist::RankTokens::documents) : Tensor());
}

Mixing::State Context::attend(const QuerySet& queries, const KeySet& keys, const Call& call) {
  if (!keys.is_of_this_rank || is_alone()) return Local::attend(queries, keys, call);
  if (are_chosen(keys, table_.positions())) return Local::attend(queries, with_those_of_ranks(keys), call);
  WEFT_CHECK(queries.q.size(0) == table_.batch() && queries.q.size(1) == table_.num_tokens(),
             str("attend: queries ", queries.q.value(), " of the [", table_.batch(), ", ", table_.num_tokens(),
                 "] tokens here, over keys that travel"),
             "ask for the keys by Tokens::keys() where some tokens attend, or attend with all");
  ops::AttentionOptions options = call.options;
  options.first_row = queries.first_row;
  const auto plan = tokens().plan(options.mask);
  const dist::ContextRanks ranks(*group_.tokens, group_.options_for(queries.q.size(2)));
  auto [out, lse] = context_attention(ranks, group_.scheme, queries.q, keys.k, keys.v, queries.tokens, options, plan,
                                      {.query = queries.bias, .key = keys.bias});
  return {out, lse};
}

// Within the runs here, and then what the runs before them add up to, on whatever rank they are.
Var Context::prefix(const Var& x, int64_t window) {
  if (is_alone()) return Local::prefix(x, window);
  if (window > 0) return windowed(neighbours(x, window - 1, 0), window, table_.batch(), table_.num_tokens());
  const CarryIndex& at = carry_index();
  const Var rows = rows_of(x, 2), within = cumsum(rows, 0, {.segments = at.run_of});
  Var totals = take_rows(within, at.last);
  if (const int64_t missing = tokens().carries().most - totals.size(0); missing > 0) {
    const Var parts[] = {totals, Tensor::zeros({missing, totals.size(1)}, totals.dtype(), totals.device())};
    totals = concatenate(parts, 0);
  }
  Var of_runs = take_rows(all_gather(*group_.tokens, totals), at.places);
  Var earlier = cumsum(of_runs, 0, {.exclusive = true, .segments = at.segments});
  Var carried = take_rows(take_rows(earlier, at.mine), at.run_of);
  return reshape(within + carried, x.shape());
}

const Context::CarryIndex& Context::carry_index() {
  if (carry_index_) return *carry_index_;
  const ContextTokens::Carries& carries = tokens().carries();
  std::vector<int32_t> last;
  for (const Run& run : runs().all()) last.push_back(static_cast<int32_t>(run.end - 1));
  auto index = [&](const std::vector<int32_t>& numbers) { return index_on(table_.positions(), numbers); };
  return carry_index_.emplace(index(runs().run_of_tokens()), index(last), index(carries.places),
                              index(carries.segments), index(carries.mine));
}

Mixing::Neighbours Context::neighbours(const Var& x, int64_t before, int64_t after) {
  if (is_alone()) return Local::neighbours(x, before, after);
  const HaloIndex& at = halo_index(before, after);
  const Var rows = rows_of(x, 2);
  const Var parts[] = {rows, exchange_rows(*group_.tokens, take_rows(rows, at.sent), at.counts)};
  Shape shape = x.shape();
  shape[0] = 1, shape[1] = at.order.size(0);
  return {.x = reshape(take_rows(concatenate(parts, 0), at.order), shape),
          .documents = at.chains,
          .places = tokens().halo(before, after).places};
}

const Context::HaloIndex& Context::halo_index(int64_t before, int64_t after) {
  const auto [entry, is_new] = halo_indices_.try_emplace({before, after});
  HaloIndex& at = entry->second;
  if (!is_new) return at;
  const ContextTokens::Halo& halo = tokens().halo(before, after);
  std::vector<int32_t> sent;
  for (const std::vector<int32_t>& to_rank : halo.sends) {
    sent.insert(sent.end(), to_rank.begin(), to_rank.end());
    at.counts.sends.push_back(static_cast<int64_t>(to_rank.size()));
  }
  at.counts.receives = halo.receives;
  at.sent = index_on(table_.positions(), sent);
  at.order = index_on(table_.positions(), halo.order);
  at.chains = index_on(table_.positions(), halo.chains).unsqueeze(0);
  return at;
}

std::vector<Var> Context::gather(std::span<const Var> values, int64_t window) {
  if (is_alone()) return Local::gather(values, window);
  const Tensor order = index_on(table_.positions(), tokens().order());
  std::vector<Var> all;
  for (const Var& x : values) {
    Var rows = rows_of(all_gather(*group_.tokens, unsqueeze(x, 0)), 3);
    Shape shape = x.shape();
    shape[1] *= group_.tokens->size();
    all.push_back(reshape(take_rows(rows, order), shape));
    if (all.back().wants_grad()) unsettled_.push_back(all.back());
  }
  return all;
}

const Mixing::GatheredTokens& Context::gathered(int64_t window) {
  if (is_alone()) return Local::gathered(window);
  if (all_) return *all_;
  const ContextTokens& all = tokens();
  const int64_t B = all.batch(), count = B * all.tokens(), S = all.ranks() * all.tokens();
  auto sorted = [&](auto of_rank) {
    std::vector<int32_t> values;
    for (int32_t number : all.order())
      values.push_back(of_rank(static_cast<size_t>(number / count))[static_cast<size_t>(number % count)]);
    return on_device_of(table_.positions(), values, {B, S});
  };
  all_.emplace(sorted([&](size_t r) -> auto& { return all.of_ranks()[r].positions; }),
               all.has_documents() ? sorted([&](size_t r) -> auto& { return all.of_ranks()[r].documents; }) : Tensor(),
               sorted([&](size_t r) -> auto& { return all.document_positions()[r]; }));
  all_->places.resize(static_cast<size_t>(count));
  for (size_t i = 0; i < all.order().size(); ++i)
    if (all.order()[i] / count == group_.tokens->rank())
      all_->places[static_cast<size_t>(all.order()[i] % count)] = static_cast<int32_t>(static_cast<int64_t>(i) % S);
  return *all_;
}

Var Context::sum(const Var& x, Over over) {
  Var here = table_.sum_here(x, over);
  return all_reduce(over == Over::batch ? group_.of_batch() : *group_.tokens, here);
}

ops::AttentionStatistics Context::statistics(const QuerySet& queries, const KeySet& keys, const State& state,
                                             const Call& call) {
  NoGrad no_grad;
  if (!keys.is_of_this_rank) return Local::statistics(queries, keys, state, call);
  Call how = call;
  how.options.dropout = 0, how.options.first_row = queries.first_row;
  const Var lse = log_sums(*this, queries, keys, state, how);
  if (queries.bias.defined()) how.options.score.query_bias = queries.bias.value();
  if (keys.bias.defined()) how.options.score.key_bias = keys.bias.value();
  const dist::ContextRanks ranks(*group_.tokens, group_.options_for(queries.q.size(2)));
  return dist::context_statistics(ranks, group_.scheme, queries.q.value(), keys.k.value(), lse.value(), queries.tokens,
                                  how.options, *tokens().plan(how.options.mask));
}

KeySet Context::keys_here(const KeySet& keys) {
  if (is_alone() || keys.is_of_this_rank) return keys;
  const int64_t count = table_.num_tokens(), begin = group_.tokens->rank() * count;
  auto here = [&](const Var& x) { return x.defined() && x.size(1) != count ? slice(x, 1, begin, begin + count) : x; };
  return {here(keys.k), here(keys.v), here(keys.bias), table_.attention_tokens(), keys.window, true};
}

Tensor Context::sum_of_ranks(const Tensor& x) {
  NoGrad no_grad;
  return all_reduce(*group_.tokens, Var(x)).value();
}

Var Context::settled(const Var& y) {
  const std::vector<Var> waiting = std::exchange(unsettled_, {});
  return is_recording() ? hold(y, waiting) : y;
}

std::unique_ptr<Mixing> make_context(const TokenTable& table, const ContextGroup& group, Watched watched) {
  return std::make_unique<Context>(table, group, watched);
}

}  // namespace weft
