// Analyses of a trained model that need forwards of their own, or whole matrices: what layers report of themselves while they train is in
// docs/diagnostics.md. All are for evaluation batches; sums are in f64 on the CPU.
// B batch rows, T tokens, D model width, H heads, L layers.
#pragma once

#include <span>
#include <string>
#include <utility>
#include <vector>

#include "weft/comm/communicator.h"
#include "weft/models/language_model.h"

namespace weft {

// How near the tokens of a state [T, D] are to one vector (Dong et al., Attention is not all you need, 2103.03404): 0 when they are it.
struct RankCollapse {
  double residual = 0;  // |X - 1 m| / |X|, m the mean token, |M| = sqrt(largest column sum * largest row sum of sizes)
  double frobenius_residual = 0;  // the same in the Frobenius norm
  double first_residual = 0;      // Frobenius, with the first token for m: what causal attention collapses to
  double last_cosine = 0;         // of the last two tokens
};
RankCollapse rank_collapse(const Tensor& state_TD);

// Tokens that take the direction of the first one for some layers (Wong et al., Secondary Attention Sinks, 2512.22213).
struct SecondarySink {
  int64_t token, first_layer,
      lifetime;  // layers in which |cos(h_t, h_1)| > 0.9, among those where the first token is large
};
// States behind the embedding and each layer [T, D], L + 1 of them. Keeps tokens whose lifetime is more than 0.1 L and less than 0.7 L.
std::vector<SecondarySink> secondary_sinks(std::span<const Tensor> states_TD);

// Weights [B, T, H, S] as a Probe shows them -> their mean over heads [B, T, S] f64, as sizes; where rows do not sum to 1 by themselves
// (is_softmax false), over the sum of the row.
Tensor weight_shares(const Tensor& weights_BTHS, bool is_softmax);

// Abnar & Zuidema, Quantifying Attention Flow in Transformers, 2005.00928. layers[l] [T, T]: shares of layer l; a layer passes on
// own I + (1 - own) A. Rollout: products of those, [T, T], row i what the inputs give to position i.
Tensor attention_rollout(std::span<const Tensor> layers, double own = 0.5);
// Largest flow from position `query` of the last layer to each input, [T], with those matrices as capacities. T <= 64.
Tensor attention_flow(std::span<const Tensor> layers, int64_t query, double own = 0.5);

// Rows to analyse a model on; targets as in LanguageModel::loss. Padding (TokenData::documents) counts for nothing in any analysis.
// `context`: ranks that share these rows, in any layout; the rest is of the tokens here. Each of them makes the same calls and has the same
// results, those of one rank but for the order of sums.
struct AnalysisRows {
  Tensor ids, targets;
  TokenData tokens;
  const ContextGroup* context = nullptr;
};

// Michel et al., Are Sixteen Heads Really Better than One?, 1905.10650: mean over rows of |d loss / d mask| of each head's output, over the
// norm of the layer's. One entry per mixer whose heads pass Tokens::heads().
struct HeadImportance {
  std::string mixer;  // path
  std::vector<double> heads;
};
std::vector<HeadImportance> head_importance(LanguageModel& model, const AnalysisRows& rows);

// Loss in nats per target without the least important heads of all layers: {share of heads taken away, loss} from 0 to 1 in tenths. Ranks of
// `comm` share the forwards, here and below: each of them calls it with the same model and rows (of ranks that share rows, with the same part of
// them), and has what one of them alone has.
std::vector<std::pair<double, double>> pruning_curve(LanguageModel& model, const AnalysisRows& rows,
                                                     const std::vector<HeadImportance>& importance,
                                                     dist::Communicator* comm = nullptr);

// In nats per target that is not of padding. The probe may change what passes it.
double analysis_loss(LanguageModel& model, const AnalysisRows& rows, const Probe& probe = {});

// LayerBoost (2604.22050): how much the loss grows, in nats per target, without the outputs of each mixer's heads. By the mixer's path, those
// whose heads pass Tokens::heads().
std::vector<std::pair<std::string, double>> layer_sensitivity(LanguageModel& model, const AnalysisRows& rows,
                                                              dist::Communicator* comm = nullptr);

// Over-mixing: |change of the last token's state| / |change of the embedding of `token`|, behind each layer, by a central difference.
// Tokens are numbered in the order of positions. The last is the last that is not padding; a row whose `token` is padding has no say.
std::vector<double> perturbation_spread(LanguageModel& model, const AnalysisRows& rows, int64_t token = 0);

// All of the above by name, on `rows`; what needs T x T matrices or states of a sequence uses the first 64 tokens, up to padding, of the
// first row that begins with a token. Of ranks that share rows each has a copy of those. Rollout and flow take the mean of the shares of a layer's
// calls of attention; a layer that shows no weights is left out of them and named: model.layers.L.left_out_of_rollout is 1.
std::vector<std::pair<std::string, double>> analyse(LanguageModel& model, const AnalysisRows& rows,
                                                    dist::Communicator* comm = nullptr);

}  // namespace weft
