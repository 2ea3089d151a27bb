// Gated slot attention in place of the softmax layers of a trained model (GSA, 2409.07146, section "fine-tuning pretrained transformers").
//   auto [model, report] = to_gated_slots(trained, {.slots = 64}, Rng(1));
//   std::cout << to_string(report);
// All tensors of a layer but its queries' and keys' norms, sinks and the like have a place in the new one. What is new, the gates of the slots
// and a norm behind them, is as in a fresh model. What softmax did without tensors ends with it: gated slots do not rotate, have no window and
// no soft cap, so that the order of tokens is known by the gates alone.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "weft/models/language_model.h"

namespace weft {

struct GatedSlotsConversion {
  int64_t slots = 64;
  std::vector<int64_t> layers = {};  // empty: every softmax layer
};

// Names of tensors. `repeated`: keys and values of groups, once per query head. `fresh`: of the new model, not taken from anywhere. `left`: of
// the trained one, without a place in the new. `lost`: what a layer did without tensors and the new one does not, such as "layers.0.mixer:
// rotation of queries and keys".
struct ConversionReport {
  std::vector<std::string> taken, repeated, fresh, left, lost;
};
std::string to_string(const ConversionReport& report);  // a line for each kind, with the names of all but `taken`

struct ConvertedModel {
  std::unique_ptr<LanguageModel> model;
  ConversionReport report;
};
// The tensors are copies. Error if a layer is not made of SoftmaxOptions, or its heads are not dim / heads wide.
ConvertedModel to_gated_slots(const LanguageModel& trained, const GatedSlotsConversion& how, Rng rng);

}  // namespace weft
