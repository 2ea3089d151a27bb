// Mixtures of heads and experts of attention.
#include "src/nn/mixers/rows/rows.h"

namespace weft {

Rows expert_rows() {
  const std::string_view depends = "rows of an expert's product depend on the choices of all tokens",
                         experts = "experts that each token chooses, no heads that all tokens have";
  const MixerRow::Lacks grouped{.exact_causality = depends}, no_heads{.heads = experts},
      grouped_experts{.exact_causality = depends, .heads = experts};
  const MixerRow::Lacks through{.gradient = "weights are 1 with the gradient of the probabilities, as published"};
  const MixerRow::Lacks cut{.gradient = "the router's gradient leaves out the sum of the chosen, as published",
                            .heads = experts};
  auto moh = [](const char* name, HeadMixtureOptions mixture, std::string_view equation, MixerRow::Lacks lacks = {}) {
    return MixerRow{
        name, SoftmaxOptions{.heads = 4, .kv_heads = 2, .head_mixture = mixture}, equation, "2410.11842", {}, lacks};
  };
  return {
      moh("moh", {.active = 1, .shared = 2, .path = HeadPath::dense}, "g_h(x) mha, g from shared and chosen heads"),
      moh("moh_routed", {.active = 2, .path = HeadPath::dense}, "moh without shared heads"),
      moh("moh_paper", {.active = 2, .shared = 1, .has_paper_scale = true, .path = HeadPath::dense},
          "moh weighted by bare probabilities"),
      moh("moh_query_norm", {.active = 2, .shared = 1, .reads_query_norm = true, .path = HeadPath::dense},
          "moh, heads chosen by |q|", through),
      moh("moh_running_load", {.active = 2, .shared = 1, .path = HeadPath::dense, .has_running_load = true},
          "moh, balanced against a running load"),
      moh("moh_grouped", {.active = 1, .shared = 2, .path = HeadPath::grouped}, "moh, work for chosen heads only",
          grouped),
      {"moa",
       MoaOptions{.experts = 4, .active = 2, .is_dense = true},
       "sum_e w_e mqa(x W_e) U_e",
       "2210.05144",
       {},
       cut,
       MixerRow::Toy::recall,
       0.2},
      {"moa_renorm",
       MoaOptions{.experts = 4, .active = 2, .is_detached = false, .is_dense = true},
       "moa with the whole gradient",
       "2210.05144",
       {},
       no_heads,
       MixerRow::Toy::recall,
       0.2},
      {"moa_noise",
       MoaOptions{.experts = 4, .active = 2, .has_noise = true, .is_detached = false, .is_dense = true},
       "moa, noisy choice in training",
       "2210.05144",
       {},
       no_heads,
       MixerRow::Toy::recall,
       0.2},
      {"moa_grouped",
       MoaOptions{.experts = 4, .active = 2, .is_detached = false},
       "moa, chosen experts only",
       "2210.05144",
       {},
       grouped_experts,
       MixerRow::Toy::recall,
       0.2},
      {"umoe",
       UmoeOptions{.experts = 4, .active = 2, .query_rank = 3, .is_dense = true},
       "sum_e p_e F_e(softmax(q_e k^T) x) + F(softmax(q k^T) x)",
       "2505.07260",
       {},
       no_heads},
      {"umoe_grouped",
       UmoeOptions{.experts = 4, .active = 2, .query_rank = 3},
       "umoe, chosen experts only",
       "2505.07260",
       {},
       grouped_experts},
  };
}

}  // namespace weft
