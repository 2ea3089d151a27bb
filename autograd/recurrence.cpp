// The gated linear recurrence and the element-wise one, with their backward.
#include "weft/autograd/recurrence.h"

#include "autograd/recurrence_inputs.h"

namespace weft {

std::array<Var, 2> recur(const RecurrenceVars& in, const ops::RecurrenceOptions& options) {
  const ops::RecurrenceInput input = values_of(in);
  ops::Recurrence result = ops::recur(input, options);
  return record("recur", std::array<Tensor, 2>{result.out, result.state}, inputs_of(in),
                [saved = SavedRecurrence(input), options](std::span<const Tensor> dys, Wants wants) {
                  return grads_of(ops::recur_backward(dys[0], dys[1], saved.get(), options, wants_of(wants)));
                });
}

std::array<Var, 2> decay_scan(const DecayScanVars& in) {
  ops::DecayScan result = ops::decay_scan({.x_BTD = in.x_BTD.value(),
                                           .log_decay = in.log_decay.value(),
                                           .state = in.state.value(),
                                           .documents = in.documents,
                                           .state_document = in.state_document});
  auto backward_of = [x = Saved(in.x_BTD.value()), log_decay = Saved(in.log_decay.value()),
                      state = Saved(in.state.value()), documents = Saved(in.documents),
                      state_document = Saved(in.state_document)](std::span<const Tensor> dys, Wants) {
    ops::DecayScanGrads grads = ops::decay_scan_backward(
        dys[0], dys[1],
        {.x_BTD = x, .log_decay = log_decay, .state = state, .documents = documents, .state_document = state_document});
    return Grads{grads.dx, grads.dlog_decay, grads.dstate};
  };
  return record("decay_scan", std::array<Tensor, 2>{result.y, result.state}, {in.x_BTD, in.log_decay, in.state},
                std::move(backward_of));
}

Tensor state_documents(const Tensor& documents_BT, const Tensor& before) {
  return ops::state_documents(documents_BT, before);
}

}  // namespace weft
