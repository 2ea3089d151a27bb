// What layers show of attention while diagnostics are taken. Definitions: When Attention Sink Emerges (2410.10781), Active-Dormant
// Attention Heads (2410.13835). B batch, T tokens, H query heads, G key/value heads.
#include "weft/nn/observation.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "weft/autograd/recompute.h"
#include "weft/core/error.h"
#include "weft/core/scope.h"

namespace weft {

Observation::Observation(const TokenTable& table, Sharing& reports, const TokensOptions& options)
    : table_(table),
      reports_(reports),
      is_decoding_(options.cache != nullptr),
      probe_(options.cache ? nullptr : options.probe) {}

bool Observation::is_watched() const { return !is_decoding_ && (reports_.takes_reports() || shows_weights()); }

bool Observation::shows_weights() const { return probe_ && probe_->weights && !is_recomputing(); }

void Observation::show_weights(const Tensor& weights_BTHT, bool is_softmax) const {
  if (shows_weights()) probe_->weights(Scope::path(), weights_BTHT, is_softmax);
}

Var Observation::heads(const Var& y_BTHV) const {
  return probe_ && probe_->heads ? probe_->heads(Scope::path(), y_BTHV) : y_BTHV;
}

Var Observation::embedding(const Var& x_BTD) const {
  Var x = probe_ && probe_->embedding ? probe_->embedding(x_BTD) : x_BTD;
  show_state("embedding", x);
  return x;
}

void Observation::show_state(std::string_view name, const Var& x_BTD) const {
  if (!probe_ || !probe_->state || is_recomputing()) return;
  probe_->state(str(Scope::path(), ".", name), x_BTD);
}

// Per head: entropy of a row, largest score, mass on the first token of the query's document, how often that is more than 0.3 of the
// mean query's (sink rate, 2410.10781), and the first value's norm over the mean one's (value drain, 2410.13835).
void Observation::report_attention(const ops::AttentionStatistics& seen, const Var& v_BTGV) {
  if (!reports_.takes_reports() || is_decoding_) return;
  constexpr double kSink = 0.3;
  const int64_t H = seen.entropy.size(2), G = v_BTGV.size(2);
  auto mass = seen.column_mass.to_vector<float>(), entropy = seen.entropy.to_vector<float>(),
       top = seen.max_score.to_vector<float>();
  NoGrad no_grad;
  auto norms = sqrt(weft::sum(square(cast(v_BTGV, kF32)), -1)).value().to_vector<float>();
  const std::vector<TokenTable::Document> documents = table_.documents_here();
  auto count = 0.0;
  for (const TokenTable::Document& d : documents) count += static_cast<double>(d.tokens.size());
  for (int64_t h = 0; h < H; ++h) {
    double entropies = 0, first = 0, sinks = 0, whole = 0, largest = -HUGE_VAL;
    for (const TokenTable::Document& d : documents) {
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
    reports_.report(str("entropy/", h), entropies, count);
    if (count > 0) reports_.report_max(str("max_score/", h), largest);
    reports_.report(str("first_token_mass/", h), first, count);
    reports_.report(str("sink_rate/", h), sinks, whole);
  }
  for (int64_t g = 0; g < G; ++g) {
    double drain = 0, whole = 0;
    for (const TokenTable::Document& d : documents) {
      if (d.tokens.size() < 2 || !d.has_first) continue;
      auto at = [&](size_t i) { return static_cast<double>(norms[static_cast<size_t>(d.tokens[i] * G + g)]); };
      double others = 0;
      for (size_t i = 1; i < d.tokens.size(); ++i) others += at(i) / static_cast<double>(d.tokens.size() - 1);
      drain += at(0) / std::max(others, 1e-30), whole += 1;
    }
    reports_.report(str("value_drain/", g), drain, whole);
  }
}

}  // namespace weft
