#include "src/nn/mixing/mixing.h"

#include <algorithm>

#include "src/nn/mixing/any_order.h"
#include "weft/core/error.h"

namespace weft {

std::vector<KeySet> KeySet::groups() const {
  const int64_t G = k.size(2);
  std::vector<Var> ks = chunk(k, G, 2), vs = chunk(v, G, 2), biases(static_cast<size_t>(G));
  if (bias.defined()) biases = chunk(bias, G, 2);
  std::vector<KeySet> sets;
  for (size_t g = 0; g < ks.size(); ++g) sets.push_back({ks[g], vs[g], biases[g], tokens, window});
  return sets;
}

std::vector<KeySet> KeySet::rows() const {
  const int64_t B = k.size(0);
  std::vector<Var> ks = chunk(k, B, 0), vs = chunk(v, B, 0), biases(static_cast<size_t>(B));
  if (bias.defined()) biases = chunk(bias, B, 0);
  std::vector<KeySet> sets;
  for (size_t b = 0; b < ks.size(); ++b) {
    const auto row = static_cast<int64_t>(b);
    auto of_row = [&](const Tensor& all) { return all.defined() ? all.slice(0, row, row + 1) : all; };
    const ops::AttentionTokens of{of_row(tokens.positions), of_row(tokens.documents), tokens.are_consecutive};
    sets.push_back({ks[b], vs[b], biases[b], of, window});
  }
  return sets;
}

// Options under which the scores of -q are those of q with the opposite sign.
static ops::AttentionOptions opposite(ops::AttentionOptions options) {
  ops::AttentionScore& s = options.score;
  for (Tensor* part : {&s.alibi_slopes, &s.query_bias, &s.key_bias})
    if (part->defined()) *part = (-Var(*part)).value();
  s.shift = -s.shift;
  return options;
}

// Bare scores are weights of both signs: sizes are what is above 0, and what is above 0 of the opposite scores.
Var log_sums(Mixing& mixing, const QuerySet& queries, const KeySet& keys, const Mixing::State& state,
             const Mixing::Call& call) {
  if (state.lse.defined()) return state.lse;
  const Var& k = keys.k;
  KeySet counting = keys;
  counting.v = Tensor::full({k.size(0), k.size(1), k.size(2), 1}, 1, k.dtype(), k.device());
  Mixing::Call how{.options = call.options, .is_shown = false};
  const bool has_signs =
      how.options.normaliser == ops::Normaliser::sum && how.options.score.activation == ops::ScoreActivation::none;
  if (has_signs) how.options.score.activation = ops::ScoreActivation::relu;
  auto [sums, of_softmax] = mixing.attend(queries, counting, how);
  if (has_signs) {
    QuerySet turned = queries;
    turned.q = -queries.q;
    for (Var* bias : {&turned.bias, &counting.bias})
      if (bias->defined()) *bias = -*bias;
    how.options = opposite(how.options);
    sums = sums + mixing.attend(turned, counting, how).out;
  }
  return of_softmax.defined() ? of_softmax : log(cast(squeeze(sums, -1), sums.dtype() == kF64 ? kF64 : kF32));
}

// Whether the token n before is of the same document: [B, T] bool.
static Tensor continues(const Tensor& documents_BT, int64_t n) {
  constexpr double kNoDocument = -2;  // -1 is padding
  const int64_t B = documents_BT.size(0), T = documents_BT.size(1), kept = std::min(n, T);
  const Var parts[] = {Tensor::full({B, kept}, kNoDocument, kI32, documents_BT.device()),
                       documents_BT.slice(1, 0, T - kept)};
  return equal(documents_BT, concatenate(parts, 1).value());
}

Mixing::Neighbours by_position(const Var& x, const Runs& runs, int64_t num_tokens) {
  const std::vector<int32_t> order = runs.order();
  const auto count = static_cast<int64_t>(order.size()), all = x.size(1);
  Shape one_row = x.shape();
  one_row[0] = 1, one_row[1] = count;
  std::vector<int32_t> places(static_cast<size_t>(x.size(0) * num_tokens));
  for (size_t i = 0; i < order.size(); ++i) {
    const int64_t row = order[i] / all, token = order[i] % all - (all - num_tokens);
    if (token >= 0) places[static_cast<size_t>(row * num_tokens + token)] = static_cast<int32_t>(i);
  }
  Tensor chains = Tensor::from(std::span<const int32_t>(runs.chains()), {1, count});
  return {.x = reshape(take_tokens(x, order), one_row),
          .documents = to(chains, x.device()).value(),
          .places = std::move(places),
          .have_gaps = runs.have_gaps()};
}

Var those_here(const Mixing::Neighbours& near, const Var& y, int64_t batch, int64_t num_tokens) {
  if (near.places.empty()) return y.size(1) == num_tokens ? y : slice(y, 1, y.size(1) - num_tokens, y.size(1));
  Shape shape = y.shape();
  shape[0] = batch, shape[1] = num_tokens;
  return reshape(take_tokens(y, near.places), shape);
}

Var shifted(const Mixing::Neighbours& near, int64_t n, int64_t batch, int64_t num_tokens) {
  const Var& x = near.x;
  const int64_t all = x.size(1), kept = std::min(n, all);
  Shape start = x.shape();
  start[1] = kept;
  const Var parts[] = {Tensor::zeros(start, x.dtype(), x.device()), all > 0 ? slice(x, 1, 0, all - kept) : x};
  Var y = concatenate(parts, 1);
  if (near.documents.defined()) {
    Tensor same = continues(near.documents, n);
    for (int i = 2; i < x.num_dims(); ++i) same = same.unsqueeze(-1);
    y = where(same.expand(y.shape()), y, Tensor::zeros({}, x.dtype(), x.device()));
  }
  return those_here(near, y, batch, num_tokens);
}

Var windowed(const Mixing::Neighbours& near, int64_t window, int64_t batch, int64_t num_tokens) {
  WEFT_CHECK(!near.have_gaps, "scan: a window over a document of which tokens are missing here",
             "hand over all tokens of a document");
  return those_here(near, cumsum(near.x, 1, {.segments = near.documents, .window = window}), batch, num_tokens);
}

}  // namespace weft
