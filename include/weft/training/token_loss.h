// The loss of a model of tokens, as steps and evaluations call it.
#pragma once

#include <functional>

#include "weft/core/staging.h"
#include "weft/data/samples.h"
#include "weft/models/language_model.h"

namespace weft {

// ids, targets [B, T] i32 where the model is, -1: no target. `loss` is factor * the sum over targets, with auxiliary losses; `losses` are the
// losses per token, which evaluation and bits per byte read: a training without them may leave them out.
using TokenLoss =
    std::function<LanguageModelLoss(const Tensor& ids_BT, const Tensor& targets_BT, Tokens& tokens, double factor)>;
TokenLoss token_loss(LanguageModel& model);  // its loss(); the model must outlive it

// What Tokens wants of a batch, where the model is.
TokenData token_data(const data::Batch& batch, bool keeps_documents_apart, int64_t first_row, Upload& upload);

}  // namespace weft
