// A model that learns from another one: what layers that were replaced or newly added do to its outputs is healed.
#pragma once

#include "weft/training/token_loss.h"

namespace weft {

struct DistillationOptions {
  double weight = 1;       // of the distance to the teacher; the loss of the text has 1 - weight
  double temperature = 1;  // by which the logits of both are divided
};
// Per target weight T^2 KL(softmax(teacher / T) || softmax(student / T)) + (1 - weight) cross-entropy, and the student's auxiliary losses. The
// teacher is run without gradients; both models have one vocabulary and outlive the loss. `losses` are cross-entropies.
TokenLoss distillation_loss(LanguageModel& student, LanguageModel& teacher, const DistillationOptions& options);

}  // namespace weft
