// What layers report of themselves while diagnostics are taken. Definitions: When Attention Sink Emerges (2410.10781), Active-Dormant
// Attention Heads (2410.13835). B batch, T tokens, H query heads, G key/value heads.
#include <algorithm>
#include <cmath>

#include "weft/autograd/functions.h"
#include "weft/autograd/recompute.h"
#include "weft/core/scope.h"
#include "weft/nn/tokens.h"

namespace weft {

ops::AttentionStatistics Tokens::statistics(const Var& q_BTHK, const Var& k_BTGK, const Var& lse_BTH,
                                            ops::AttentionOptions options) {
  NoGrad no_grad;
  ops::AttentionTokens here{data_.positions, data_.documents};
  options.mask.same_document = data_.documents.defined();
  options.dropout = 0;
  Var lse = lse_BTH;
  if (!lse.defined()) {  // the log of the sum of weights, which are not negative
    Var one = Tensor::full({k_BTGK.size(0), k_BTGK.size(1), k_BTGK.size(2), 1}, 1, k_BTGK.dtype(), k_BTGK.device());
    Var sums = squeeze(weft::attend(q_BTHK, k_BTGK, one, here, here, options)[0], -1);
    lse = log(cast(sums, sums.dtype() == kF64 ? kF64 : kF32));
  }
  return weft::attention_statistics(q_BTHK, k_BTGK, lse, here, here, options);
}

bool Tokens::takes_reports() const { return options_.takes_diagnostics && !is_recomputing(); }

void Tokens::report(std::string_view name, double sum, double count) {
  if (takes_reports()) reports_.push_back({str(Scope::path(), ".", name), sum, count});
}

void Tokens::report_max(std::string_view name, double value) {
  if (takes_reports()) reports_.push_back({str(Scope::path(), ".", name), value, 1, true});
}

void Tokens::report_means(std::string_view name, const Var& x) {
  if (!takes_reports()) return;
  NoGrad no_grad;
  const int64_t last = x.size(-1), rows = x.value().num_elements() / std::max<int64_t>(last, 1);
  auto sums = weft::sum(reshape(cast(x, kF64), {rows, last}), 0).value().to_vector<double>();
  for (size_t i = 0; i < sums.size(); ++i) report(str(name, "/", i), sums[i], static_cast<double>(rows));
}

// Per head: entropy of a row, largest score, mass on the first token of the query's document, how often that is more than 0.3 of the
// mean query's (sink rate, 2410.10781), and the first value's norm over the mean one's (value drain, 2410.13835).
void Tokens::report_attention(const Var& q_BTHK, const Var& k_BTGK, const Var& v_BTGV, const Var& lse_BTH,
                              const ops::AttentionOptions& options) {
  constexpr double kSink = 0.3;
  const int64_t B = batch(), T = num_tokens(), H = q_BTHK.size(2), G = v_BTGV.size(2);
  ops::AttentionStatistics seen = statistics(q_BTHK, k_BTGK, lse_BTH, options);
  auto mass = seen.column_mass.to_vector<float>(), entropy = seen.entropy.to_vector<float>(),
       top = seen.max_score.to_vector<float>();
  NoGrad no_grad;
  auto norms = sqrt(weft::sum(square(cast(v_BTGV, kF32)), -1)).value().to_vector<float>();
  auto positions = document_positions().to_vector<int32_t>();
  auto documents = data_.documents.defined() ? data_.documents.to_vector<int32_t>() : std::vector<int32_t>();
  // Documents as runs of tokens of a row.
  struct Run {
    int64_t begin, length;
  };
  std::vector<Run> runs;
  for (int64_t i = 0; i < B * T; ++i) {
    auto at = static_cast<size_t>(i);
    if (!documents.empty() && documents[at] < 0) continue;
    bool continues = i % T > 0 && !runs.empty() && runs.back().begin + runs.back().length == i &&
                     (documents.empty() || documents[at] == documents[at - 1]);
    if (continues) ++runs.back().length;
    else runs.push_back({i, 1});
  }
  auto count = 0.0;
  for (const Run& run : runs) count += static_cast<double>(run.length);
  for (int64_t h = 0; h < H; ++h) {
    double entropies = 0, first = 0, sinks = 0, whole = 0, largest = -HUGE_VAL;
    for (const Run& run : runs) {
      auto at = [&](int64_t i) { return static_cast<size_t>((run.begin + i) * H + h); };
      for (int64_t i = 0; i < run.length; ++i) {
        entropies += static_cast<double>(entropy[at(i)]);
        largest = std::max(largest, static_cast<double>(top[at(i)]));
      }
      if (positions[static_cast<size_t>(run.begin)] != 0) continue;  // its first token is not here
      double alpha = static_cast<double>(mass[at(0)]) / static_cast<double>(run.length);
      first += static_cast<double>(mass[at(0)]), sinks += alpha > kSink ? 1 : 0, whole += 1;
    }
    report(str("entropy/", h), entropies, count);
    report_max(str("max_score/", h), largest);
    report(str("first_token_mass/", h), first, count);
    report(str("sink_rate/", h), sinks, whole);
  }
  for (int64_t g = 0; g < G; ++g) {
    double drain = 0, whole = 0;
    for (const Run& run : runs) {
      if (run.length < 2 || positions[static_cast<size_t>(run.begin)] != 0) continue;
      auto at = [&](int64_t i) { return static_cast<double>(norms[static_cast<size_t>((run.begin + i) * G + g)]); };
      double others = 0;
      for (int64_t i = 1; i < run.length; ++i) others += at(i) / static_cast<double>(run.length - 1);
      drain += at(0) / std::max(others, 1e-30), whole += 1;
    }
    report(str("value_drain/", g), drain, whole);
  }
}

}  // namespace weft
