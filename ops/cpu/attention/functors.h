// Options of a call as functors of the core: which instances there are.
#pragma once

#include "ops/cpu/attention/kernels.h"
#include "weft/ops/attention_core.h"

namespace weft::cpu {
namespace {

using namespace ops;

template <class F>
void with_softmax_score(const AttentionScore& score, F&& run) {
  SoftcapScore softcap{score.softcap};
  AlibiScore alibi{score.alibi_slopes.defined() ? score.alibi_slopes.data<float>() : nullptr};
  if (score.softcap > 0 && alibi.slopes) run(ScoreChain<SoftcapScore, AlibiScore>{softcap, alibi});
  else if (score.softcap > 0) run(softcap);
  else if (alibi.slopes) run(alibi);
  else run(PlainScore{});
}

// Calls run(score, normaliser).
template <class F>
void with_functors(const AttentionOptions& options, F&& run) {
  const AttentionScore& s = options.score;
  if (s.query_bias.defined() || s.key_bias.defined()) switch (options.normaliser) {
      case Normaliser::softmax: return run(BiasedScore<false>(s), SoftmaxNormaliser{});
      case Normaliser::sum: return run(BiasedScore<true>(s), SumNormaliser{});
      case Normaliser::signed_softmax: return run(BiasedScore<false>(s), SignedSoftmaxNormaliser{});
    }
  bool is_plain = s.softcap == 0 && !s.alibi_slopes.defined() && s.shift == 0 && s.activation == ScoreActivation::none;
  switch (options.normaliser) {
    case Normaliser::softmax: return with_softmax_score(s, [&](const auto& score) { run(score, SoftmaxNormaliser{}); });
    case Normaliser::sum:
      if (is_plain) return run(PlainScore{}, SumNormaliser{});
      return run(ModifiedScore<true>(s), SumNormaliser{});
    case Normaliser::signed_softmax: return run(ModifiedScore<false>(s), SignedSoftmaxNormaliser{});
  }
}

}  // namespace
}  // namespace weft::cpu
