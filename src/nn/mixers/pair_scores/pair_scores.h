// Attention whose score is any differentiable function of what it reads of a query and a key.
#pragma once

#include <functional>
#include <span>

#include "weft/nn/mixer.h"

namespace weft {

// What a score may read: I queries against the first S keys of the row.
struct PairTile {
  std::vector<Var> queries;  // [B, I, ...], as given
  std::vector<Var> keys;     // [B, S, ...]
  Tensor distance_BIS;       // query position - key position, or 0 where the key is not seen; f32, exact below 2^24
};
using PairScore = std::function<Var(const PairTile&)>;  // [B, H, I, S]; scores of unseen keys do not matter

class PairObserver;
// What a tile of queries gets of the values [B, S, G, V] of its keys: [B, I, H, V]. seen_B1IS: who sees whom. `observer`: null, or to be shown
// the tile's weights.
using PairMix = std::function<Var(const PairTile&, const Tensor& seen_B1IS, const Var& v_BSGV, PairObserver* observer)>;
// PairMix for all queries, tile by tile: [B, T, H, V]. `is_softmax`: the weights of a query sum to 1.
Var mix_pairs(Tokens& tokens, std::span<const Var> queries, std::span<const Var> keys, const Var& v_BTGV, int64_t heads,
              const PairMix& mix, int64_t window = 0, bool is_softmax = true);

// softmax(score) v over what each token sees, the last `window` (0: all); v [B, T, G, V], out [B, T, H, V]. Tiles of queries, each
// recomputed in backward, so that memory grows with T and not with T^2; every score is made of plain operations, so time is that of
// materialised attention.
Var attend_pairs(Tokens& tokens, std::span<const Var> queries, std::span<const Var> keys, const Var& v_BTGV,
                 int64_t heads, const PairScore& score, int64_t window = 0);

// What tiles of weights look like, for diagnostics and probes; does nothing where nobody watches.
class PairObserver {
 public:
  explicit PairObserver(Tokens& tokens);
  // Of the next I queries: scores as they entered the softmax and weights that multiply values, [B, H, I, S]; who sees whom, the same for all
  // heads or of each.
  void add(const Var& scores_BHIS, const Tensor& seen, const Var& weights_BHIS);
  void finish(const Var& v_BTGV, bool is_softmax);  // after all queries

 private:
  Tokens& tokens_;
  bool is_on_;
  Var mass_;                                  // [B, H, T]
  std::vector<Var> entropy_, top_, weights_;  // [B, H, I] and, for a probe, [B, H, I, S]
};

// Error, with the number, where `copies` arrays of `elements` scores, kept for backward, are more than the memory of x's device.
void check_materialised(std::string_view what, const Var& x, double copies, double elements);

// f32, or f64 for f64: what scores are made in.
DType pair_dtype(const Var& x);

// q_i . k_j for all pairs, heads sharing keys in groups: [B, I, H, K], [B, S, G, K] -> [B, H, I, S] in pair_dtype.
Var pair_products(const Var& q_BIHK, const Var& k_BSGK);

// softmax over the last dimension of those that `mask` allows, others 0; a row with none is all 0. Mask and scores broadcast.
Var masked_softmax(const Var& scores, const Tensor& mask);

// sum_j weights_ij v_j for heads that share values in groups: [B, H, I, S], [B, S, G, V] -> [B, I, H, V].
Var mix_values(const Var& weights_BHIS, const Var& v_BSGV);

}  // namespace weft
