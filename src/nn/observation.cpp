// What layers show of attention while diagnostics are taken. Definitions: When Attention Sink Emerges (2410.10781), Active-Dormant
// Attention Heads (2410.13835). B batch, T tokens, H query heads, G key/value heads.
#include "weft/nn/observation.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "src/nn/mixing/mixing.h"
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

void Observation::show_weights(const Tensor& weights_BTHS, bool is_softmax) const {
  if (shows_weights()) probe_->weights(Scope::path(), weights_BTHS, is_softmax);
}

Var Observation::heads(const Var& y_BTHV) const {
  return probe_ && probe_->heads ? probe_->heads(Scope::path(), y_BTHV) : y_BTHV;
}

Var Observation::embedding(const Var& x_BTD) const {
  Var x = probe_ && probe_->embedding ? probe_->embedding(x_BTD) : x_BTD;
  show_state("embedding", x);
  return x;
}

bool Observation::shows_states() const { return probe_ && probe_->state && !is_recomputing(); }

void Observation::show_state(std::string_view name, const Var& x_BTD) const {
  if (!shows_states()) return;
  probe_->state(str(Scope::path(), ".", name), x_BTD);
}

Tensor Observation::sum_of_ranks(const Tensor& x) const { return mixing_->sum_of_ranks(x); }

// Per head: entropy of a row, largest score, mass on the first token of the query's document, how often that is more than 0.3 of the
// mean query's (sink rate, 2410.10781), and the first value's norm over the mean one's (value drain, 2410.13835).
void Observation::report_attention(const ops::AttentionStatistics& seen, const Var& v_BTGV) {
  if (!reports_.takes_reports() || is_decoding_) return;
  const int64_t H = seen.entropy.size(2);
  auto entropy = seen.entropy.to_vector<float>(), top = seen.max_score.to_vector<float>();
  std::vector<int64_t> counted;
  for (int64_t i = 0; i < table_.batch() * table_.num_tokens(); ++i)
    if (!table_.is_padding(i)) counted.push_back(i);
  std::vector<float> has_keys(top.size(), 0);  // of queries; those without keys have no weights
  for (int64_t h = 0; h < H; ++h) {
    double entropies = 0, largest = -HUGE_VAL, count = 0;
    for (int64_t token : counted) {
      const auto at = static_cast<size_t>(token * H + h);
      if (top[at] == -HUGE_VALF) continue;
      has_keys[at] = 1, ++count;
      entropies += static_cast<double>(entropy[at]);
      largest = std::max(largest, static_cast<double>(top[at]));
    }
    reports_.report(str("entropy/", h), entropies, count);
    if (count > 0) reports_.report_max(str("max_score/", h), largest);
  }
  report_documents(
      seen.column_mass,
      to(Tensor::from(std::span<const float>(has_keys), seen.max_score.shape()), seen.max_score.device()).value(),
      v_BTGV);
}

namespace {

// Tokens begin .. end - 1 of those gathered, row by row.
struct GatheredDocument {
  int64_t begin, end;
  bool has_first;
};

std::vector<GatheredDocument> documents_of(const Mixing::GatheredTokens& tokens) {
  const auto positions = tokens.document_positions.to_vector<int32_t>();
  const auto numbers =
      tokens.documents.defined() ? tokens.documents.to_vector<int32_t>() : std::vector<int32_t>(positions.size());
  const int64_t S = tokens.positions.size(1);
  std::vector<GatheredDocument> documents;
  for (int64_t i = 0; i < std::ssize(positions); ++i) {
    const auto at = static_cast<size_t>(i);
    if (numbers[at] < 0) continue;
    const bool begins = i % S == 0 || numbers[at] != numbers[at - 1];
    if (begins) documents.push_back({i, i, positions[at] == 0});
    documents.back().end = i + 1;
  }
  return documents;
}

}  // namespace

// A document may stand on several ranks: all of them see it whole, and report the same.
void Observation::report_documents(const Tensor& mass_BTH, const Tensor& has_keys_BTH, const Var& v_BTGV) {
  constexpr double kSink = 0.3;
  NoGrad no_grad;
  const Var here[] = {mass_BTH, has_keys_BTH, sqrt(weft::sum(square(cast(v_BTGV, kF32)), -1))};
  const std::vector<Var> all = mixing_->gather(here, 0);
  const auto mass = all[0].value().to_vector<float>(), has_keys = all[1].value().to_vector<float>(),
             norms = all[2].value().to_vector<float>();
  const std::vector<GatheredDocument> documents = documents_of(mixing_->gathered(0));
  const int64_t H = mass_BTH.size(2), G = v_BTGV.size(2);
  for (int64_t h = 0; h < H; ++h) {
    double first = 0, count = 0, sinks = 0, whole = 0;
    for (const GatheredDocument& d : documents) {
      double queries = 0;
      for (int64_t i = d.begin; i < d.end; ++i)
        queries += static_cast<double>(has_keys[static_cast<size_t>(i * H + h)]);
      count += queries;
      if (!d.has_first || queries == 0) continue;
      const auto mass_of_first = static_cast<double>(mass[static_cast<size_t>(d.begin * H + h)]);
      first += mass_of_first, whole += 1;
      sinks += mass_of_first / queries > kSink ? 1 : 0;
    }
    reports_.report(str("first_token_mass/", h), first, count);
    reports_.report(str("sink_rate/", h), sinks, whole);
  }
  for (int64_t g = 0; g < G; ++g) {
    double drain = 0, whole = 0;
    for (const GatheredDocument& d : documents) {
      if (d.end - d.begin < 2 || !d.has_first) continue;
      auto at = [&](int64_t i) { return static_cast<double>(norms[static_cast<size_t>(i * G + g)]); };
      double others = 0;
      for (int64_t i = d.begin + 1; i < d.end; ++i) others += at(i) / static_cast<double>(d.end - d.begin - 1);
      drain += at(d.begin) / std::max(others, 1e-30), whole += 1;
    }
    reports_.report(str("value_drain/", g), drain, whole);
  }
}

}  // namespace weft
