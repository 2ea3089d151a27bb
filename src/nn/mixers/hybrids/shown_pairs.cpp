#include "src/nn/mixers/hybrids/shown_pairs.h"

#include <algorithm>
#include <cmath>

#include "src/nn/mixers/pair_scores/pair_scores.h"

namespace weft::hybrid {

namespace {

constexpr int64_t kTile = 128;  // queries

// [B, G, I, S] -> [B, heads, I, S]: each group serves heads / G heads.
Tensor per_head(const Tensor& mask_BGIS, int64_t heads) {
  const int64_t B = mask_BGIS.size(0), G = mask_BGIS.size(1), I = mask_BGIS.size(2), S = mask_BGIS.size(3);
  if (G == 1 || G == heads) return mask_BGIS;
  Var groups = unsqueeze(cast(Var(mask_BGIS), kF32), 2);
  return greater(reshape(expand(groups, {B, G, heads / G, I, S}), {B, heads, I, S}), 0.5);
}

}  // namespace

void show_pairs(Tokens& tokens, const Var& q_BTHK, const Var& k_BSGK, const Var& v_BTGV, const AttendedKeys& attended) {
  if (!tokens.is_watched()) return;
  NoGrad no_grad;
  const int64_t T = q_BTHK.size(1), H = q_BTHK.size(2), S = k_BSGK.size(1);
  const double scale = 1 / std::sqrt(static_cast<double>(q_BTHK.size(3)));
  PairObserver observer(tokens);
  for (int64_t begin = 0; begin < T; begin += kTile) {
    const int64_t end = std::min(begin + kTile, T);
    const Tensor seen_B1IS = tokens.seen(begin, end, S).unsqueeze(1);
    const Tensor mask = per_head(logical_and(attended(begin, end), seen_B1IS), H);
    const Var scores_BHIS = pair_products(slice(q_BTHK, 1, begin, end), k_BSGK) * scale;
    observer.add(scores_BHIS, mask, masked_softmax(scores_BHIS, mask));
  }
  observer.finish(v_BTGV, true);
}

}  // namespace weft::hybrid
