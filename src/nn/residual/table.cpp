// Every residual stream of the library, one row per published point.
#include "weft/nn/residual.h"

namespace weft {

std::span<const ResidualRow> residual_table() {
  using enum ResidualSources;
  using enum ResidualCombine;
  using Weights = ResidualWeights;
  static const std::vector<ResidualRow> rows = {
      {"standard", StandardResidualOptions{}, "h = p", "2002.04745", "T"},
      {"attention_full", RoutedResidualOptions{}, "h = sum a_i y_i", "2603.15031", "T L^2"},
      {"attention_block", RoutedResidualOptions{.sources = block_sums, .blocks = 3}, "h = sum a_n b_n", "2603.15031",
       "T L N"},
      {"attention_states", RoutedResidualOptions{.sources = states}, "h = sum a_i p_i", "2605.18855", "T L^2"},
      {"attention_window", RoutedResidualOptions{.window = 2}, "h = sum of e and the last W outputs", "2603.15031",
       "T L W"},
      {"attention_sigmoid", RoutedResidualOptions{.weights = Weights::sigmoid}, "a = sigmoid(s)", "2603.15031",
       "T L^2"},
      {"attention_fixed", RoutedResidualOptions{.weights = Weights::fixed_softmax}, "a = softmax(b)", "2603.15031",
       "T L^2"},
      {"attention_bare_keys", RoutedResidualOptions{.has_key_norm = false}, "s_i = w . v_i", "2603.15031", "T L^2"},
      {"dense", RoutedResidualOptions{.weights = Weights::scalars}, "h = sum b_i y_i", "2402.02622", "T L^2"},
      {"delta", RoutedResidualOptions{.combine = add}, "h = p + sum a_i y_i", "2605.18855", "T L^2"},
      {"delta_block", RoutedResidualOptions{.sources = block_sums, .combine = add, .blocks = 3}, "h = p + sum a_n b_n",
       "2605.18855", "T L N"},
      {"delta_states", RoutedResidualOptions{.sources = states, .combine = add}, "h = p + sum a_i p_i", "2605.18855",
       "T L^2"},
      {"delta_null", RoutedResidualOptions{.combine = add, .has_null_source = true, .query_std = 0.02},
       "delta with a learned source more", "2605.18855", "T L^2"},
  };
  return rows;
}

}  // namespace weft
