#include "weft/training/distillation.h"

#include "weft/core/error.h"
#include "weft/nn/context_group.h"

namespace weft {

namespace {

// The same tokens, for a forward outside training.
TokenData data_of(const Tokens& tokens) {
  return {.positions = tokens.positions(),
          .documents = tokens.documents(),
          .document_positions = tokens.document_positions(),
          .first_row = tokens.first_row()};
}

}  // namespace

TokenLoss distillation_loss(LanguageModel& student, LanguageModel& teacher, const DistillationOptions& o) {
  WEFT_CHECK(o.weight > 0 && o.weight <= 1 && o.temperature > 0,
             str("distillation: weight ", o.weight, ", temperature ", o.temperature),
             "weight is in (0, 1], temperature above 0");
  const int64_t vocab = student.options().vocab;
  WEFT_CHECK(teacher.options().vocab == vocab,
             str("distillation: the teacher has ", teacher.options().vocab, " ids, the model ", vocab),
             "use a teacher with the same tokenizer");
  return [&student, &teacher, o, vocab](const Tensor& ids_BT, const Tensor& targets_BT, Tokens& tokens,
                                        double factor) -> LanguageModelLoss {
    Tensor of_teacher;
    {
      NoGrad no_grad;
      Tokens others(data_of(tokens), {.context = tokens.context()});
      of_teacher = teacher.logits(ids_BT, others);
    }
    Tensor targets = targets_BT;
    if (tokens.has_padding())
      targets = where(tokens.counted(), Var(targets), Tensor::full({}, -1, kI32, targets.device())).value();
    targets = targets.reshape({-1});
    Var logits_NV = reshape(student.output(student.hidden(ids_BT, tokens)), {-1, vocab});
    Var distances_N = kl_divergence(logits_NV * (1 / o.temperature),
                                    Var(of_teacher.reshape({-1, vocab})) * (1 / o.temperature), Reduction::none);
    distances_N = where(greater_equal(Var(targets), 0), distances_N, 0);
    Var losses_N = cross_entropy(logits_NV, targets);
    Var loss = sum_all(distances_N) * (factor * o.weight * o.temperature * o.temperature);
    if (o.weight < 1) loss = loss + sum_all(losses_N) * (factor * (1 - o.weight));
    for (const Tokens::Loss& extra : tokens.losses()) loss = loss + extra.value * extra.weight;
    return {loss, cast(losses_N, kF32).value().reshape(ids_BT.shape())};
  };
}

}  // namespace weft
