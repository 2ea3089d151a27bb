// What layers report of themselves while diagnostics are taken. Definitions: When Attention Sink Emerges (2410.10781), Active-Dormant
// Attention Heads (2410.13835). B batch, T tokens, H query heads, G key/value heads.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "weft/autograd/functions.h"
#include "weft/autograd/recompute.h"
#include "weft/core/error.h"
#include "weft/core/scope.h"
#include "weft/nn/tokens.h"

namespace weft {

// Options under which the scores of -q are those of q with the opposite sign.
static ops::AttentionOptions opposite(ops::AttentionOptions options) {
  ops::AttentionScore& s = options.score;
  for (Tensor* part : {&s.alibi_slopes, &s.query_bias, &s.key_bias})
    if (part->defined()) *part = (-Var(*part)).value();
  s.shift = -s.shift;
  return options;
}

// lse itself, or where there is none the log of the sum of sizes of weights; with a sink, of the keys and the sink.
Var Tokens::merged_lse(const Var& q_BTHK, const Var& k_BTGK, const Var& lse_BTH, const Var& sink,
                       const ops::AttentionOptions& options) const {
  Var lse = lse_BTH;
  if (!lse.defined()) {
    const ops::AttentionTokens tokens{data_.positions, data_.documents};
    Var one = Tensor::full({k_BTGK.size(0), k_BTGK.size(1), k_BTGK.size(2), 1}, 1, k_BTGK.dtype(), k_BTGK.device());
    ops::AttentionOptions how = options;
    // Bare scores are weights of both signs: sizes are what is above 0, and what is above 0 of the opposite scores.
    const bool has_signs =
        options.normaliser == ops::Normaliser::sum && options.score.activation == ops::ScoreActivation::none;
    if (has_signs) how.score.activation = ops::ScoreActivation::relu;
    auto [sums, of_softmax] = weft::attend(q_BTHK, k_BTGK, one, tokens, tokens, how);
    if (has_signs) sums = sums + weft::attend(-q_BTHK, k_BTGK, one, tokens, tokens, opposite(how))[0];
    lse = of_softmax.defined() ? of_softmax : log(cast(squeeze(sums, -1), sums.dtype() == kF64 ? kF64 : kF32));
  }
  if (!sink.defined()) return lse;
  Var u = expand(cast(sink, lse.dtype()), lse.shape());
  return maximum(lse, u) + log(exp(-abs(lse - u)) + 1.0);
}

ops::AttentionStatistics Tokens::statistics(const Var& q_BTHK, const Var& k_BTGK, const Var& lse_BTH,
                                            ops::AttentionOptions options) {
  NoGrad no_grad;
  ops::AttentionTokens tokens = here(options);
  options.dropout = 0;
  return weft::attention_statistics(q_BTHK, k_BTGK, merged_lse(q_BTHK, k_BTGK, lse_BTH, {}, options), tokens, tokens,
                                    options);
}

void Tokens::observe(const Var& q_BTHK, const Var& k_BTGK, const Var& v_BTGV, Var lse_BTH,
                     ops::AttentionOptions options, const Var& sink) {
  if (is_decoding() || (!takes_reports() && !shows_weights())) return;
  NoGrad no_grad;
  here(options);
  options.dropout = 0, options.backend = ops::AttentionBackend::automatic;
  lse_BTH = merged_lse(q_BTHK, k_BTGK, lse_BTH, {}, options);
  Var merged = merged_lse(q_BTHK, k_BTGK, lse_BTH, sink, options);
  if (takes_reports()) report_attention(statistics(q_BTHK, k_BTGK, merged, options), v_BTGV);
  if (takes_reports() && sink.defined())
    report_means("sink_mass", exp(expand(cast(sink, merged.dtype()), merged.shape()) - merged));
  if (shows_weights())
    show_weights(weights(q_BTHK, k_BTGK, lse_BTH, sink.defined() ? merged : Var(), options),
                 options.normaliser == ops::Normaliser::softmax);
}

bool Tokens::shows_weights() const {
  return options_.probe && options_.probe->weights && !is_decoding() && !is_recomputing();
}

void Tokens::show_weights(const Tensor& weights_BTHT, bool is_softmax) const {
  if (shows_weights()) options_.probe->weights(Scope::path(), weights_BTHT, is_softmax);
}

// The core with columns of the identity as values gives columns of the weights; `merged`: lse with a sink, if there is one.
Tensor Tokens::weights(const Var& q_BTHK, const Var& k_BTGK, const Var& lse_BTH, const Var& merged,
                       const ops::AttentionOptions& options) const {
  constexpr int64_t kColumns = 64;
  const int64_t B = k_BTGK.size(0), T = k_BTGK.size(1), G = k_BTGK.size(2);
  const ops::AttentionTokens tokens{data_.positions, data_.documents};
  std::vector<Var> parts;
  for (int64_t begin = 0; begin < T; begin += kColumns) {
    const int64_t width = std::min(kColumns, T - begin);
    Tensor columns = Tensor::zeros({T, width}, kF32, Device::cpu());
    for (int64_t j = 0; j < width; ++j) columns.mutable_data<float>()[(begin + j) * width + j] = 1;
    Var unit = cast(to(columns, k_BTGK.device()), k_BTGK.dtype());
    Var v = expand(reshape(unit, {1, T, 1, width}), {B, T, G, width});
    parts.push_back(
        cast(weft::attend(q_BTHK, k_BTGK, reshape(v * 1.0, {B, T, G, width}), tokens, tokens, options)[0], kF32));
  }
  Var weights = concatenate(parts, -1);
  if (merged.defined()) weights = weights * unsqueeze(cast(exp(lse_BTH - merged), kF32), -1);
  return weights.value();
}

Var Tokens::heads(const Var& y_BTHV) const {
  const bool is_probed = options_.probe && options_.probe->heads && !is_decoding();
  return is_probed ? options_.probe->heads(Scope::path(), y_BTHV) : y_BTHV;
}

Var Tokens::embedding(const Var& x_BTD) const {
  const bool is_probed = options_.probe && options_.probe->embedding && !is_decoding();
  Var x = is_probed ? options_.probe->embedding(x_BTD) : x_BTD;
  show_state("embedding", x);
  return x;
}

void Tokens::show_state(std::string_view name, const Var& x_BTD) const {
  if (!options_.probe || !options_.probe->state || is_decoding() || is_recomputing()) return;
  options_.probe->state(str(Scope::path(), ".", name), x_BTD);
}

bool Tokens::takes_reports() const { return options_.takes_diagnostics && !is_recomputing(); }

void Tokens::report(std::string_view name, double sum, double count) {
  if (takes_reports() && count > 0) reports_.push_back({str(Scope::path(), ".", name), sum, count});
}

void Tokens::report_max(std::string_view name, double value) {
  if (takes_reports()) reports_.push_back({str(Scope::path(), ".", name), value, 1, true});
}

void Tokens::report_means(std::string_view name, const Var& x) {
  if (!takes_reports()) return;
  NoGrad no_grad;
  WEFT_CHECK(x.num_dims() >= 3 && x.size(0) == batch() && x.size(1) == num_tokens(),
             str("report_means: '", name, "' is ", x.value(), ", the tokens are [", batch(), ", ", num_tokens(), "]"),
             "give [B, T, ..., N]");
  std::vector<int> dims(static_cast<size_t>(x.num_dims()) - 3);  // of those behind [B, T], all but the last
  std::iota(dims.begin(), dims.end(), 0);
  const int64_t last = x.size(-1),
                each = x.value().num_elements() / std::max<int64_t>(batch() * num_tokens() * last, 1);
  auto sums = weft::sum(sum(cast(x, kF64)), dims).value().to_vector<double>();
  const double count = num_counted().value().item() * static_cast<double>(each);
  for (size_t i = 0; i < sums.size(); ++i) report(str(name, "/", i), sums[i], count);
}

// Per head: entropy of a row, largest score, mass on the first token of the query's document, how often that is more than 0.3 of the
// mean query's (sink rate, 2410.10781), and the first value's norm over the mean one's (value drain, 2410.13835).
void Tokens::report_attention(const ops::AttentionStatistics& seen, const Var& v_BTGV) {
  if (!takes_reports() || is_decoding()) return;
  constexpr double kSink = 0.3;
  const int64_t H = seen.entropy.size(2), G = v_BTGV.size(2);
  auto mass = seen.column_mass.to_vector<float>(), entropy = seen.entropy.to_vector<float>(),
       top = seen.max_score.to_vector<float>();
  NoGrad no_grad;
  auto norms = sqrt(weft::sum(square(cast(v_BTGV, kF32)), -1)).value().to_vector<float>();
  const std::vector<Document> documents = documents_here();
  auto count = 0.0;
  for (const Document& d : documents) count += static_cast<double>(d.tokens.size());
  for (int64_t h = 0; h < H; ++h) {
    double entropies = 0, first = 0, sinks = 0, whole = 0, largest = -HUGE_VAL;
    for (const Document& d : documents) {
      auto at = [&](int64_t token) { return static_cast<size_t>(token * H + h); };
      for (int64_t token : d.tokens) {
        entropies += static_cast<double>(entropy[at(token)]);
        largest = std::max(largest, static_cast<double>(top[at(token)]));
      }
      if (!d.has_first) continue;
      const double mass_of_first = static_cast<double>(mass[at(d.tokens[0])]);
      first += mass_of_first, whole += 1;
      sinks += mass_of_first / static_cast<double>(d.tokens.size()) > kSink ? 1 : 0;
    }
    report(str("entropy/", h), entropies, count);
    if (count > 0) report_max(str("max_score/", h), largest);
    report(str("first_token_mass/", h), first, count);
    report(str("sink_rate/", h), sinks, whole);
  }
  for (int64_t g = 0; g < G; ++g) {
    double drain = 0, whole = 0;
    for (const Document& d : documents) {
      if (d.tokens.size() < 2 || !d.has_first) continue;
      auto at = [&](size_t i) { return static_cast<double>(norms[static_cast<size_t>(d.tokens[i] * G + g)]); };
      double others = 0;
      for (size_t i = 1; i < d.tokens.size(); ++i) others += at(i) / static_cast<double>(d.tokens.size() - 1);
      drain += at(0) / std::max(others, 1e-30), whole += 1;
    }
    report(str("value_drain/", g), drain, whole);
  }
}

}  // namespace weft
