// What heads of softmax attention learn from in-context linear regression (2503.12734). Tokens are pairs z_i = (x_i, y_i), y = w . x + noise, and
// the query is (x_q, 0), which sees n pairs. One layer, without embeddings, norms and residual stream, predicts y_q:
//   sum over heads h and pairs i of softmax_i(z_i^T KQ_h z_q) (OV_h . z_i)
// KQ_h is the product of a head's keys and queries, OV_h that of its values and of what is read from them. Training leads to a pattern: KQ_h is
// omega_h I on x and 0 elsewhere, with |omega_h| alike; OV_h is mu_h on y and 0 elsewhere, with the sign of omega_h; and, of two heads or
// more, the mu_h add up to 0. For small omega that is a step of gradient descent on the pairs, from which the mean of y is taken.
#pragma once

#include <span>
#include <vector>

#include "trainers/tasks/sinks.h"
#include "weft/nn/layers.h"

namespace weft::tasks {

// C = width + 1 numbers per token.
struct HeadPattern {
  std::vector<double> kq;  // [C, C]: rows are of the pair, columns of the query
  std::vector<double> ov;  // [C]
};

class PairHeads final : public Module {
 public:
  PairHeads(int64_t width, int64_t heads, Rng rng);
  // pairs [B, n, C], queries [B, 1, C] -> predictions [B].
  Var operator()(const Var& pairs_BnC, const Var& queries_B1C) const;
  std::vector<HeadPattern> patterns();

 private:
  int64_t heads_, numbers_;  // H, C
  Linear q_, k_, v_, out_;
};

// How far the heads have the pattern. "KQ on the diagonal": share of KQ's squares that omega I explains, weighted by size. "OV on y": the share of
// OV's squares. "sum of OV": |sum of mu| over the sum of |mu|. "signs agree": share of |mu| in heads whose omega has mu's sign.
Figures pattern_figures(std::span<const HeadPattern> heads, int64_t width);

// Squared errors at the query of the heads, of the best gradient step and of ridge regression, the gap to the step, and the figures of the pattern.
Figures circuits(int64_t heads, const Options& options);

}  // namespace weft::tasks
