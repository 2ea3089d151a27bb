#include "src/nn/mixing/local.h"

#include "src/nn/mixing/any_order.h"
#include "weft/core/error.h"

namespace weft {

KeySet Local::keys(const Var& k_BTGK, const Var& v_BTGV, const KeyOptions& options) {
  Var v = v_BTGV.defined() ? v_BTGV : slice(k_BTGK, -1, 0, options.value_width);
  return {k_BTGK, v, options.bias, table_.attention_tokens(), options.window};
}

Mixing::State Local::attend(const QuerySet& queries, const KeySet& keys, const Call& call) {
  ops::AttentionOptions options = call.options;
  options.first_row = queries.first_row;
  auto [out, lse] = weft::attend(queries.q, keys.k, keys.v, queries.tokens, keys.tokens, options,
                                 {.query = queries.bias, .key = keys.bias});
  return {out, lse};
}

Var Local::prefix(const Var& x, int64_t window) {
  if (window > 0) return windowed(neighbours(x, window - 1, 0), window, table_.batch(), table_.num_tokens());
  if (const Runs* runs = table_.other_order()) return scan_in_runs(x, *runs);
  return cumsum(x, 1, {.segments = table_.documents()});
}

Var Local::recur(const RecurrenceVars& input, const ops::RecurrenceOptions& options) {
  if (table_.other_order()) return recur_gathered(*this, input, options);
  RecurrenceVars with_documents = input;
  with_documents.documents = table_.documents();
  return weft::recur(with_documents, options)[0];
}

Var Local::decay_scan(const Var& x_BTD, const Var& log_decay) {
  if (table_.other_order()) return decay_scan_gathered(*this, x_BTD, log_decay);
  return weft::decay_scan({.x_BTD = x_BTD, .log_decay = log_decay, .documents = table_.documents()})[0];
}

Mixing::Neighbours Local::neighbours(const Var& x, int64_t, int64_t) {
  const Runs* runs = table_.other_order();
  return runs ? by_position(x, *runs, table_.num_tokens()) : Neighbours{x, table_.documents(), {}};
}

std::vector<Var> Local::gather(std::span<const Var> values, int64_t) {
  std::vector<Var> all(values.begin(), values.end());
  if (const Runs* runs = table_.other_order())
    for (Var& x : all) x = take_tokens(x, runs->order());
  return all;
}

const Mixing::GatheredTokens& Local::gathered(int64_t) {
  if (gathered_) return *gathered_;
  const Runs* runs = table_.other_order();
  if (!runs) return gathered_.emplace(table_.positions(), table_.documents(), table_.document_positions());
  const std::vector<int32_t> order = runs->order();
  auto sorted = [&](const Tensor& x) {
    return x.defined() ? cast(take_tokens(cast(Var(x), kF64), order), kI32).value() : x;
  };
  gathered_.emplace(sorted(table_.positions()), sorted(table_.documents()), sorted(table_.document_positions()));
  gathered_->places.resize(order.size());
  for (size_t i = 0; i < order.size(); ++i)
    gathered_->places[static_cast<size_t>(order[i])] =
        static_cast<int32_t>(i % static_cast<size_t>(table_.num_tokens()));
  return *gathered_;
}

ops::AttentionStatistics Local::statistics(const QuerySet& queries, const KeySet& keys, const State& state,
                                           const Call& call) {
  NoGrad no_grad;
  Call how = call;
  how.options.dropout = 0;
  if (queries.bias.defined()) how.options.score.query_bias = queries.bias.value();
  if (keys.bias.defined()) how.options.score.key_bias = keys.bias.value();
  return attention_statistics(queries.q, keys.k, log_sums(*this, queries, keys, state, how), queries.tokens,
                              keys.tokens, how.options);
}

std::unique_ptr<Mixing> make_local(const TokenTable& table) { return std::make_unique<Local>(table); }

}  // namespace weft
