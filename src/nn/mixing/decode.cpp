// The tokens here come behind those in a cache, on this rank or on all that decode together.
#include <algorithm>
#include <map>

#include "src/nn/mixing/any_order.h"
#include "src/nn/mixing/cache.h"
#include "src/nn/mixing/local.h"
#include "weft/core/error.h"
#include "weft/core/scope.h"

namespace weft {

namespace {

class Decode final : public Local {
 public:
  Decode(const TokenTable& table, std::shared_ptr<Cache> cache) : Local(table), cache_(std::move(cache)) {
    cache_->begin_step(table);
  }

  KeySet keys(const Var& k_BTGK, const Var& v_BTGV, const KeyOptions& options) override {
    check_no_gradient("attend");
    auto& slot = cache_->slot<Cache::Keys>(name("keys"));
    const int64_t keep = kept_for("attend", options.window);
    if (cache_->ranks() && options.window == 0 && options.serves_one_call)
      return shared_out(slot, k_BTGK, v_BTGV, options);
    Tensor k = append(slot.k, k_BTGK, keep);
    Tensor v = v_BTGV.defined() ? append(slot.v, v_BTGV, keep) : k.slice(-1, 0, options.value_width);
    Var bias = options.bias.defined() ? Var(append(slot.bias, options.bias, keep)) : Var();
    return {k, v, bias, cache_->last(k.size(1)), options.window};
  }

  State attend(const QuerySet& queries, const KeySet& keys, const Call& call) override {
    Call how = call;
    how.options.dropout = 0;
    if (are_chosen(keys, table_.positions())) return joined(queries, with_cached(keys), how);
    return cache_->are_mine(keys.tokens) ? joined(queries, keys, how) : Local::attend(queries, keys, how);
  }

  ops::AttentionStatistics statistics(const QuerySet& queries, const KeySet& keys, const State& state,
                                      const Call& call) override {
    WEFT_CHECK(!cache_->are_mine(keys.tokens), "statistics: of keys that are shared out among the ranks of a decoding",
               "leave KeyOptions::serves_one_call out, or decode on one rank");
    return Local::statistics(queries, keys, state, call);
  }

  Var prefix(const Var& x, int64_t window) override {
    check_no_gradient("scan");
    if (window > 0) return windowed(tail("window", x, window - 1), window, table_.batch(), table_.num_tokens());
    auto& slot = cache_->slot<Cache::Sum>(name("sum"));
    Var total = cumsum(x, 1, {.segments = table_.documents()});
    if (slot.total.defined()) total = total + carried(slot, x);
    if (table_.num_tokens() > 0) keep_last(slot, total);
    return total;
  }

  Var recur(const RecurrenceVars& input, const ops::RecurrenceOptions& options) override {
    check_no_gradient("recur");
    auto& slot = cache_->slot<Cache::Recurrent>(name("recur"));
    RecurrenceVars here = input;
    here.state = slot.state, here.documents = table_.documents(), here.state_document = slot.document;
    auto [y, state] = weft::recur(here, options);
    keep_state(slot, state);
    return y;
  }

  Var decay_scan(const Var& x_BTD, const Var& log_decay) override {
    check_no_gradient("decay_scan");
    auto& slot = cache_->slot<Cache::Recurrent>(name("decay_scan"));
    auto [y, state] = weft::decay_scan({.x_BTD = x_BTD,
                                        .log_decay = log_decay,
                                        .state = slot.state,
                                        .documents = table_.documents(),
                                        .state_document = slot.document});
    keep_state(slot, state);
    return y;
  }

  // Both ChunkStates are kept.
  Var recur_chunks(const RecurrenceVars& input, const ops::RecurrenceOptions& options, const Chunks& chunks) override {
    check_no_gradient("recur_chunks");
    auto& slot = cache_->slot<Cache::Recurrent>(name("recur_chunks"));
    std::vector<int32_t> before;
    if (slot.document.defined()) before = slot.document.to_vector<int32_t>();
    else if (slot.state.defined()) before.assign(static_cast<size_t>(table_.batch()), 0);
    ChunkStates states;
    if (slot.state.defined()) states = {select(Var(slot.state), 1, 0), select(Var(slot.state), 1, 1)};
    Var y = recur_in_pieces(
        input, options, chunks.keeps_BTH,
        pieces_of(table_.batch(), table_.cpu_document_positions(), table_.cpu_documents(), chunks.length, before),
        states);
    const Var both[] = {states.written, states.other};
    keep_state(slot, stack(both, 1));
    return y;
  }

  Neighbours neighbours(const Var& x, int64_t before, int64_t after) override {
    check_no_gradient("shift");
    WEFT_CHECK(after == 0, str("neighbours: ", after, " tokens behind each in decoding"), "they are not there yet");
    return tail("neighbours", x, before);
  }

  std::vector<Var> gather(std::span<const Var> values, int64_t window) override {
    check_no_gradient("gather");
    auto& slot = cache_->slot<Cache::Tail>(name("gather"));
    slot.values.resize(values.size());
    const int64_t keep = kept_for("gather", window);
    std::vector<Var> all;
    for (size_t i = 0; i < values.size(); ++i) all.push_back(sorted(append(slot.values[i], values[i], keep)));
    return all;
  }

  const GatheredTokens& gathered(int64_t window) override {
    if (auto known = gathered_.find(window); known != gathered_.end()) return known->second;
    if (window == 0) cache_->note_all_tokens();
    WEFT_CHECK(window > 0 || cache_->is_bounded(),
               "gathered: all tokens of a decoding without a bound on its length, which forgets them",
               "make_cache(batch, max_tokens), or a window");
    GatheredTokens& gathered = gathered_[window];
    // What gather() kept in the step before, and these.
    const int64_t earlier = window > 0 ? cache_->reach_before(window - 1) : cache_->num_tokens();
    const int64_t count = std::min(earlier, cache_->num_tokens()) + table_.num_tokens();
    ops::AttentionTokens all = cache_->last(count);
    auto numbers = [&](const Tensor& x) { return x.defined() ? cast(sorted(cast(Var(x), kF64)), kI32).value() : x; };
    Tensor document_positions = cache_->document_positions(count);
    if (!disorder(count)) return gathered = {all.positions, all.documents, document_positions, {}};
    gathered = {numbers(all.positions), numbers(all.documents), numbers(document_positions), {}};
    const std::vector<int32_t> order = disorder(count)->order();
    const int64_t T = table_.num_tokens();
    gathered.places.resize(static_cast<size_t>(table_.batch() * T));
    for (size_t i = 0; i < order.size(); ++i) {
      const int64_t row = order[i] / count, token = order[i] % count - (count - T);
      if (token >= 0)
        gathered.places[static_cast<size_t>(row * T + token)] = static_cast<int32_t>(i) % static_cast<int32_t>(count);
    }
    return gathered;
  }

  void finish_step() override { cache_->finish_step(); }

 private:
  std::string name(const std::string& kind) {
    const std::string path(Scope::path()), named = path.empty() ? kind : str(path, " ", kind);
    return str(named, " ", uses_[named]++);
  }
  static void check_no_gradient(std::string_view what) {
    WEFT_CHECK(!is_recording(), str(what, ": decoding with a cache has no gradient"), "decode under NoGrad");
  }
  int64_t kept_for(std::string_view what, int64_t window) {
    if (window == 0) cache_->note_all_tokens();
    WEFT_CHECK(window > 0 || cache_->is_bounded(),
               str(what, ": all tokens of a decoding without a bound on its length"),
               "make_cache(batch, max_tokens), or a window");
    return window > 0 ? cache_->reach(window - 1) : cache_->max_tokens();
  }
  Tensor append(CachedRows& rows, const Var& fresh, int64_t keep) const {
    return rows.append(fresh.value(), keep, cache_->max_tokens());
  }

  // Every P-th token's. All memory is for as many as there will be.
  KeySet shared_out(Cache::Keys& slot, const Var& k_BTGK, const Var& v_BTGV, const KeyOptions& options) const {
    const int64_t most = cache_->num_mine(cache_->max_tokens());
    auto append = [&](CachedRows& rows, const Var& fresh) {
      return rows.append(cache_->mine(fresh.value()), most, most);
    };
    const Tensor k = append(slot.k, k_BTGK);
    const Tensor v = v_BTGV.defined() ? append(slot.v, v_BTGV) : k.slice(-1, 0, options.value_width);
    const Var bias = options.bias.defined() ? Var(append(slot.bias, options.bias)) : Var();
    return {k, v, bias, cache_->my_tokens(), options.window};
  }

  // Over the keys of all ranks, of which each has some.
  State joined(const QuerySet& queries, const KeySet& mine, const Call& call) {
    if (!cache_->ranks()) return Local::attend(queries, mine, call);
    ops::AttentionOptions options = call.options;
    options.first_row = queries.first_row;
    if (queries.bias.defined()) options.score.query_bias = queries.bias.value();
    if (mine.bias.defined()) options.score.key_bias = mine.bias.value();
    // The results of a prompt are many: met in pairs, two of them are in memory at once, and not one of each rank.
    constexpr int64_t kMany = int64_t{1} << 21;
    const Tensor &q = queries.q.value(), &v = mine.v.value();
    const bool are_many = q.size(0) * q.size(1) * q.size(2) * (v.size(3) + 1) > kMany;
    const ops::Attention all =
        dist::context_decode(*cache_->ranks(), q, mine.k.value(), v, queries.tokens, mine.tokens, options,
                             are_many ? dist::DecodeMerge::tree : dist::DecodeMerge::automatic);
    return {all.out, all.lse};
  }

  // Chosen keys with those of the tokens before. They are moved in the steps that bring some.
  KeySet with_cached(const KeySet& fresh) {
    check_no_gradient("attend");
    kept_for("attend", 0);
    auto& slot = cache_->slot<Cache::Chosen>(name("chosen"));
    ChosenRows rows = those_of_this_rank(chosen_rows(fresh), slot.counts);
    const bool are_new = std::ranges::any_of(rows, [](const auto& row) { return !row.empty(); });
    if (!are_new && slot.keys.k.defined()) return slot.keys;
    auto flat = [](const Var& x) { return reshape(x, {x.size(0) * x.size(1), x.size(2), x.size(3)}); };
    Var k = flat(fresh.k), v = flat(fresh.v);
    if (slot.keys.k.defined()) {
      const auto held = static_cast<int32_t>(slot.keys.k.size(0) * slot.keys.k.size(1));
      for (size_t b = 0; b < rows.size(); ++b) {
        for (ChosenKey& key : rows[b]) key.number += held;
        rows[b].insert(rows[b].begin(), slot.rows[b].begin(), slot.rows[b].end());
      }
      const Var ks[] = {flat(slot.keys.k), k}, vs[] = {flat(slot.keys.v), v};
      k = concatenate(ks, 0), v = concatenate(vs, 0);
    }
    slot.keys = chosen_keys(k, v, rows, fresh.tokens.documents.defined());
    slot.rows = chosen_rows(slot.keys);
    return slot.keys;
  }

  ChosenRows those_of_this_rank(ChosenRows rows, std::vector<int64_t>& counts) const {
    if (!cache_->ranks()) return rows;
    counts.resize(rows.size());
    for (size_t b = 0; b < rows.size(); ++b) {
      std::vector<ChosenKey> mine;
      for (const ChosenKey& key : rows[b])
        if (cache_->is_mine(counts[b]++)) mine.push_back(key);
      rows[b] = std::move(mine);
    }
    return rows;
  }

  // The runs of the last `count` tokens if they do not stand in order: padding may stand between the tokens of a row.
  std::optional<Runs> disorder(int64_t count) const {
    if (!table_.documents().defined()) return {};
    Runs runs = cache_->runs(count);
    return runs.are_in_order() ? std::optional<Runs>() : std::move(runs);
  }
  Var sorted(const Var& x) const {
    const std::optional<Runs> runs = disorder(x.size(1));
    return runs ? take_tokens(x, runs->order()) : x;
  }

  void keep_state(Cache::Recurrent& slot, const Var& state) const {
    slot.state = state.value();
    if (table_.documents().defined()) slot.document = state_documents(table_.documents(), slot.document);
  }

  // With the last `before` tokens of the cache in front.
  Neighbours tail(const std::string& kind, const Var& x, int64_t before) {
    auto& slot = cache_->slot<Cache::Tail>(name(kind));
    slot.values.resize(1);
    Var all = append(slot.values[0], x, cache_->reach(before));
    const std::optional<Runs> runs = disorder(all.size(1));
    if (runs) return by_position(all, *runs, table_.num_tokens());
    return {all, table_.documents().defined() ? cache_->last(all.size(1)).documents : Tensor(), {}};
  }

  // What a sum has of earlier tokens of the document of each of these.
  Var carried(const Cache::Sum& slot, const Var& x) const {
    if (slot.documents.empty()) return slot.total;
    Tensor documents = Tensor::from(std::span<const int32_t>(slot.documents), {table_.batch(), 1});
    Tensor goes_on = equal(table_.documents(), to(documents, x.device()).value().expand(table_.documents().shape()));
    for (int i = 2; i < x.num_dims(); ++i) goes_on = goes_on.unsqueeze(-1);
    return where(goes_on.expand(x.shape()), Var(slot.total), Tensor::zeros({}, x.dtype(), x.device()));
  }

  // The sum at the last token of each row that is not padding.
  void keep_last(Cache::Sum& slot, const Var& total) const {
    const int64_t B = table_.batch(), T = table_.num_tokens();
    if (!table_.documents().defined()) {
      slot.total = total.value().slice(1, T - 1, T);
      return;
    }
    const Tensor before = slot.total.defined() ? slot.total : total.value().slice(1, 0, 1);
    if (slot.documents.empty()) slot.documents.assign(static_cast<size_t>(B), -2);  // none yet
    std::vector<int32_t> rows;  // of what was kept, row by row, and of these
    for (int64_t b = 0; b < B; ++b) {
      int64_t last = T - 1;
      while (last >= 0 && table_.is_padding(b * T + last)) --last;
      rows.push_back(static_cast<int32_t>(b * (T + 1) + last + 1));
      if (last >= 0) slot.documents[static_cast<size_t>(b)] = table_.cpu_documents()[static_cast<size_t>(b * T + last)];
    }
    const Var both[] = {before, total};
    Shape shape = total.shape();
    shape[1] = 1;
    slot.total = reshape(take_tokens(concatenate(both, 1), rows), shape).value();
  }

  std::shared_ptr<Cache> cache_;
  std::map<std::string, int64_t> uses_;
  std::map<int64_t, GatheredTokens> gathered_;  // by window, when first asked for
};

}  // namespace

std::unique_ptr<Mixing> make_decode(const TokenTable& table, std::shared_ptr<Cache> cache) {
  return std::make_unique<Decode>(table, std::move(cache));
}

}  // namespace weft
