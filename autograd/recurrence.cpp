// The gated linear recurrence and the element-wise one, with their backward.
#include "weft/autograd/recurrence.h"

#include "weft/autograd/record.h"

namespace weft {

std::array<Var, 2> recur(const RecurrenceVars& in, const ops::RecurrenceOptions& options) {
  ops::Recurrence result = ops::recur({.q_BTGK = in.q_BTGK.value(),
                                       .k_BTGK = in.k_BTGK.value(),
                                       .v_BTHV = in.v_BTHV.value(),
                                       .log_decay = in.log_decay.value(),
                                       .beta = in.beta.value(),
                                       .writes = in.writes,
                                       .state = in.state.value(),
                                       .documents = in.documents,
                                       .state_document = in.state_document},
                                      options);
  auto backward_of = [q = Saved(in.q_BTGK.value()), k = Saved(in.k_BTGK.value()), v = Saved(in.v_BTHV.value()),
                      log_decay = Saved(in.log_decay.value()), beta = Saved(in.beta.value()), writes = Saved(in.writes),
                      state = Saved(in.state.value()), documents = Saved(in.documents),
                      state_document = Saved(in.state_document), options](std::span<const Tensor> dys, Wants wants) {
    ops::RecurrenceGrads grads = ops::recur_backward(
        dys[0], dys[1],
        {.q_BTGK = q,
         .k_BTGK = k,
         .v_BTHV = v,
         .log_decay = log_decay,
         .beta = beta,
         .writes = writes,
         .state = state,
         .documents = documents,
         .state_document = state_document},
        options,
        {.q = wants[0], .k = wants[1], .v = wants[2], .log_decay = wants[3], .beta = wants[4], .state = wants[5]});
    return Grads{grads.dq, grads.dk, grads.dv, grads.dlog_decay, grads.dbeta, grads.dstate};
  };
  return record("recur", std::array<Tensor, 2>{result.out, result.state},
                {in.q_BTGK, in.k_BTGK, in.v_BTHV, in.log_decay, in.beta, in.state}, std::move(backward_of));
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
